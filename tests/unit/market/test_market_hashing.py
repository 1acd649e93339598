"""Our hashes reproduce recorded blocks of real CometBFT chains."""

from __future__ import annotations

import base64
import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from leasehold.market.accounts import PublicKey
from leasehold.market.ledger import comet, hashing

DATA = Path(__file__).parents[2] / "data/cometbft"
BLOCKS = [
    "kvstore_v0_38/block_at_height_1",
    "kvstore_v0_38/block_at_height_10",
    "gaia/block_at_height_10",
]
VALIDATOR = base64.b64decode("bNNlGls5R25wC3Sd8720F/3+7IZBhXcD22MNFtPk/v0=")


def recorded(name: str) -> Any:
    return json.loads((DATA / f"{name}.json").read_text())["result"]


def nanoseconds(text: str) -> int:
    base, _, fraction = text.rstrip("Z").partition(".")
    whole = datetime.datetime.fromisoformat(base).replace(tzinfo=datetime.UTC)
    return int(whole.timestamp()) * 10**9 + int((fraction or "0").ljust(9, "0"))


def signature(said: dict[str, Any]) -> bytes:
    return (
        hashing.number(1, said["block_id_flag"])
        + hashing.chunk(2, bytes.fromhex(said["validator_address"]))
        + hashing.chunk(3, hashing.timestamp(nanoseconds(said["timestamp"])), always=True)
        + hashing.chunk(4, base64.b64decode(said["signature"]))
    )


def last_id(said: dict[str, Any]) -> tuple[bytes, bytes, int]:
    parts = said["parts"]
    return bytes.fromhex(said["hash"]), bytes.fromhex(parts["hash"]), parts["total"]


@pytest.mark.parametrize("name", BLOCKS)
def test_a_recorded_block_has_the_hash_we_compute(name: str) -> None:
    said = recorded(name)
    head, last = said["block"]["header"], said["block"]["last_commit"]
    txs = [base64.b64decode(tx) for tx in said["block"]["data"]["txs"]]
    raw = {k: bytes.fromhex(v) for k, v in head.items() if k.endswith(("_hash", "_address"))}
    hash, encoded = hashing.header(
        version=(int(head["version"].get("block", 0)), int(head["version"].get("app", 0))),
        chain_id=head["chain_id"],
        height=int(head["height"]),
        time=nanoseconds(head["time"]),
        last=last_id(head["last_block_id"]),
        last_commit=raw["last_commit_hash"],
        data=raw["data_hash"],
        validators=raw["validators_hash"],
        next_validators=raw["next_validators_hash"],
        consensus=raw["consensus_hash"],
        app=raw["app_hash"],
        last_results=raw["last_results_hash"],
        evidence=raw["evidence_hash"],
        proposer=raw["proposer_address"],
    )
    assert comet.upper(hash) == said["block_id"]["hash"]
    assert hashing.data_hash(txs) == raw["data_hash"]
    assert hashing.consensus_hash() == raw["consensus_hash"]
    signatures = [signature(s) for s in last["signatures"]]
    assert hashing.merkle(signatures) == raw["last_commit_hash"]
    commit = (
        hashing.number(1, int(last["height"]))
        + hashing.chunk(3, hashing.block_id(*last_id(last["block_id"])), always=True)
        + b"".join(hashing.chunk(4, s) for s in signatures)
    )
    body = (
        hashing.chunk(1, encoded)
        + hashing.chunk(2, b"".join(hashing.chunk(1, t, always=True) for t in txs), always=True)
        + hashing.chunk(3, b"", always=True)
        + hashing.chunk(4, commit)
    )
    assert comet.upper(hashing.merkle([body])) == said["block_id"]["parts"]["hash"]


def test_a_recorded_vote_verifies_over_our_bytes() -> None:
    last = recorded("kvstore_v0_38/block_at_height_10")["block"]["last_commit"]
    vote = last["signatures"][0]
    signed = hashing.precommit(
        "dockerchain", 9, nanoseconds(vote["timestamp"]), *last_id(last["block_id"])
    )
    key = PublicKey("ed25519", VALIDATOR)
    assert key.verify(base64.b64decode(vote["signature"]), signed)


def test_recorded_validator_names() -> None:
    status = recorded("kvstore_v0_38/status")
    head = recorded("kvstore_v0_38/block_at_height_1")["block"]["header"]
    assert comet.upper(hashing.address_of(VALIDATOR)) == status["validator_info"]["address"]
    assert comet.upper(hashing.validators_hash(VALIDATOR)) == head["validators_hash"]


def test_a_recorded_proof_is_the_one_we_make() -> None:
    found = recorded("kvstore_v0_38/tx_search_with_prove")["txs"][0]
    raw = base64.b64decode(found["tx"])
    proof = found["proof"]
    assert comet.tx_hash(raw) == found["hash"]
    import hashlib

    leaf = hashlib.sha256(raw).digest()
    assert comet.upper(hashing.merkle([leaf])) == proof["root_hash"]
    assert comet.b64(hashlib.sha256(b"\0" + leaf).digest()) == proof["proof"]["leaf_hash"]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 8, 13])
def test_proofs_lead_to_the_root(count: int) -> None:
    import hashlib

    leaves = [bytes([n]) * 32 for n in range(count)]
    for position in range(count):
        hash, low, high = hashlib.sha256(b"\0" + leaves[position]).digest(), 0, count
        path = []
        while high - low > 1:
            split = low + (1 << (high - low - 1).bit_length() - 1)
            path.append(position < split)
            low, high = (low, split) if position < split else (split, high)
        aunts = comet._aunts(leaves, position)
        for aunt, left in zip(aunts, reversed(path), strict=True):
            pair = hash + aunt if left else aunt + hash
            hash = hashlib.sha256(b"\1" + pair).digest()
        assert hash == hashing.merkle(leaves)


def test_times_are_written_as_comet_does() -> None:
    head = recorded("kvstore_v0_38/block_at_height_1")["block"]["header"]
    assert comet.rfc3339(nanoseconds(head["time"])) == head["time"]
    assert comet.rfc3339(1_767_225_600 * 10**9) == "2026-01-01T00:00:00Z"
