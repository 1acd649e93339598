"""The shapes of CometBFT's RPC answers (0.38), built from our blocks.

Numbers that may be large are text, hashes upper-case hex, transactions and keys base64; exactly as
in recorded answers of real nodes.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
from typing import Any

from leasehold.market.ledger import hashing
from leasehold.market.ledger.chain import Block, ChainEvent, Genesis, Sealed, TxResult

NODE_VERSION = "0.38.0"
"""The version of CometBFT whose answers these are."""

JSON = dict[str, Any]


def rfc3339(nanoseconds: int) -> str:
    """``2026-01-01T00:00:00.000000001Z``."""
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    stamp = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    fraction = f".{nanos:09d}".rstrip("0") if nanos else ""
    return stamp.strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"


def upper(data: bytes) -> str:
    return data.hex().upper()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def tx_hash(tx: bytes) -> str:
    return upper(hashlib.sha256(tx).digest())


def block_id(sealed: Sealed) -> JSON:
    return {
        "hash": upper(sealed.hash),
        "parts": {"total": sealed.total, "hash": upper(sealed.parts)},
    }


def header(genesis: Genesis, block: Block) -> JSON:
    validator = genesis.validator
    validators = upper(hashing.validators_hash(validator))
    last = block.last
    return {
        "version": {"block": str(hashing.BLOCK_PROTOCOL), "app": str(hashing.APP_PROTOCOL)},
        "chain_id": genesis.chain_id,
        "height": str(block.height),
        "time": rfc3339(block.time),
        "last_block_id": block_id(last),
        "last_commit_hash": upper(hashing.last_commit_hash(last, validator)),
        "data_hash": upper(hashing.data_hash(block.txs)),
        "validators_hash": validators,
        "next_validators_hash": validators,
        "consensus_hash": upper(hashing.consensus_hash()),
        "app_hash": upper(last.app_hash),
        "last_results_hash": upper(last.results),
        "evidence_hash": upper(hashing.merkle([])),
        "proposer_address": upper(hashing.address_of(validator)),
    }


def commit(genesis: Genesis, sealed: Sealed) -> JSON:
    signatures = []
    if sealed.height:
        signatures = [
            {
                "block_id_flag": 2,
                "validator_address": upper(hashing.address_of(genesis.validator)),
                "timestamp": rfc3339(sealed.time),
                "signature": b64(sealed.signature),
            }
        ]
    return {
        "height": str(sealed.height),
        "round": 0,
        "block_id": block_id(sealed),
        "signatures": signatures,
    }


def block(genesis: Genesis, block: Block) -> JSON:
    return {
        "header": header(genesis, block),
        "data": {"txs": [b64(tx) for tx in block.txs]},
        "evidence": {"evidence": []},
        "last_commit": commit(genesis, block.last),
    }


def block_answer(genesis: Genesis, found: Block) -> JSON:
    return {"block_id": block_id(found.sealed), "block": block(genesis, found)}


def block_meta(genesis: Genesis, found: Block) -> JSON:
    return {
        "block_id": block_id(found.sealed),
        "block_size": str(sum(map(len, found.txs))),
        "header": header(genesis, found),
        "num_txs": str(len(found.txs)),
    }


def events(found: list[ChainEvent]) -> list[JSON]:
    return [
        {
            "type": event.type,
            "attributes": [
                {"key": key, "value": value, "index": True} for key, value in event.attributes
            ],
        }
        for event in found
    ]


def tx_result(result: TxResult) -> JSON:
    return {
        "code": 0,
        "data": b64(result.data.encode()) if result.data else None,
        "log": "",
        "info": "",
        "gas_wanted": "0",
        "gas_used": "0",
        "events": events(result.events),
        "codespace": "",
    }


def block_results(found: Block) -> JSON:
    return {
        "height": str(found.height),
        "txs_results": [tx_result(r) for r in found.results] or None,
        "finalize_block_events": events(found.events) or None,
        "validator_updates": None,
        "consensus_param_updates": None,
        "app_hash": b64(found.sealed.app_hash),
    }


def tx(found: Block, position: int, *, prove: bool = False) -> JSON:
    raw = found.txs[position]
    out: JSON = {
        "hash": tx_hash(raw),
        "height": str(found.height),
        "index": position,
        "tx_result": tx_result(found.results[position]),
        "tx": b64(raw),
    }
    if prove:
        leaves = [hashlib.sha256(t).digest() for t in found.txs]
        out["proof"] = {
            "root_hash": upper(hashing.merkle(leaves)),
            "data": b64(raw),
            "proof": {
                "total": str(len(leaves)),
                "index": str(position),
                "leaf_hash": b64(hashlib.sha256(b"\0" + leaves[position]).digest()),
                "aunts": [b64(aunt) for aunt in _aunts(leaves, position)],
            },
        }
    return out


def _aunts(leaves: list[bytes], position: int) -> list[bytes]:
    if len(leaves) == 1:
        return []
    split = 1 << (len(leaves) - 1).bit_length() - 1
    left, right = leaves[:split], leaves[split:]
    if position < split:
        return [*_aunts(left, position), hashing.merkle(right)]
    return [*_aunts(right, position - split), hashing.merkle(left)]


def validator(genesis: Genesis) -> JSON:
    return {
        "address": upper(hashing.address_of(genesis.validator)),
        "pub_key": {"type": "tendermint/PubKeyEd25519", "value": b64(genesis.validator)},
        "voting_power": str(hashing.VOTING_POWER),
    }


def consensus_params() -> JSON:
    return {
        "block": {"max_bytes": str(hashing.MAX_BLOCK_BYTES), "max_gas": "-1"},
        "evidence": {
            "max_age_num_blocks": "100000",
            "max_age_duration": "172800000000000",
            "max_bytes": "1048576",
        },
        "validator": {"pub_key_types": ["ed25519"]},
        "version": {"app": str(hashing.APP_PROTOCOL)},
        "abci": {"vote_extensions_enable_height": "0"},
    }


def genesis_doc(genesis: Genesis) -> JSON:
    member = validator(genesis)
    return {
        "genesis_time": rfc3339(genesis.time),
        "chain_id": genesis.chain_id,
        "initial_height": str(genesis.initial_height),
        "consensus_params": consensus_params(),
        "validators": [
            {
                "address": member["address"],
                "pub_key": member["pub_key"],
                "power": member["voting_power"],
                "name": "",
            }
        ],
        "app_hash": "",
        "app_state": {
            "authority": genesis.authority,
            "params": {f: getattr(genesis.params, f) for f in genesis.params.__struct_fields__},
            "accounts": [{"address": a.address, "coins": a.coins} for a in genesis.accounts],
        },
    }


def status(genesis: Genesis, first: Block | None, last: Sealed, rpc: str) -> JSON:
    return {
        "node_info": {
            "protocol_version": {
                "p2p": "8",
                "block": str(hashing.BLOCK_PROTOCOL),
                "app": str(hashing.APP_PROTOCOL),
            },
            "id": hashing.address_of(genesis.validator).hex(),
            # There are no peers; clients insist on something in these.
            "listen_addr": "tcp://127.0.0.1:0",
            "network": genesis.chain_id,
            "version": NODE_VERSION,
            "channels": "00",
            "moniker": "leasehold",
            "other": {"tx_index": "on", "rpc_address": rpc},
        },
        "sync_info": {
            "latest_block_hash": upper(last.hash),
            "latest_app_hash": upper(last.app_hash),
            "latest_block_height": str(last.height),
            "latest_block_time": rfc3339(last.time),
            "earliest_block_hash": upper(first.sealed.hash) if first else "",
            "earliest_app_hash": upper(first.last.app_hash) if first else "",
            "earliest_block_height": str(first.height) if first else "0",
            "earliest_block_time": rfc3339(first.time if first else genesis.time),
            "catching_up": False,
        },
        "validator_info": validator(genesis),
    }
