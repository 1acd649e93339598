"""The methods of the ledger's RPC: what each answers, from what is durable.

Parameters come as JSON clients and people write them: numbers as text, bytes as base64 or hex.
Shapes of the answers are in ``comet``.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.market.ledger import comet
from leasehold.market.ledger.chain import Block
from leasehold.market.ledger.query import parse
from leasehold.market.ledger.search import search_blocks, search_txs
from leasehold.market.ledger.service import LedgerService

JSON = dict[str, Any]

MAX_BLOCKCHAIN = 20
"""Block headers in one answer of ``blockchain``, as CometBFT has it."""

CODESPACE = "leasehold"

_encode = msgspec.json.encode


class Methods:
    """``table`` has each by its name, with the names of its parameters in order."""

    def __init__(self, ledger: LedgerService) -> None:
        self.ledger = ledger
        self.table: dict[str, tuple[Callable[..., Awaitable[Any]], tuple[str, ...]]] = {
            "health": (self.health, ()),
            "status": (self.status, ()),
            "net_info": (self.net_info, ()),
            "genesis": (self.genesis, ()),
            "block": (self.block, ("height",)),
            "block_by_hash": (self.block_by_hash, ("hash",)),
            "header": (self.header, ("height",)),
            "block_results": (self.block_results, ("height",)),
            "blockchain": (self.blockchain, ("minHeight", "maxHeight")),
            "commit": (self.commit, ("height",)),
            "validators": (self.validators, ("height", "page", "per_page")),
            "consensus_params": (self.consensus_params, ("height",)),
            "tx": (self.tx, ("hash", "prove")),
            "tx_search": (self.tx_search, ("query", "prove", "page", "per_page", "order_by")),
            "block_search": (self.block_search, ("query", "page", "per_page", "order_by")),
            "abci_info": (self.abci_info, ()),
            "abci_query": (self.abci_query, ("path", "data", "height", "prove")),
            "unconfirmed_txs": (self.unconfirmed_txs, ("limit",)),
            "num_unconfirmed_txs": (self.unconfirmed_txs, ("limit",)),
            "check_tx": (self.check_tx, ("tx",)),
            "broadcast_tx_sync": (self.broadcast_tx_sync, ("tx",)),
            "broadcast_tx_async": (self.broadcast_tx_sync, ("tx",)),
            "broadcast_tx_commit": (self.broadcast_tx_commit, ("tx",)),
        }

    # -- the chain -----------------------------------------------------------------------------

    async def health(self) -> JSON:
        return {}

    async def status(self) -> JSON:
        ledger = self.ledger
        await ledger.settled()
        first = None
        if ledger.chain.last.height:
            first = await ledger.history.block(ledger.history.first)
        return comet.status(ledger.genesis, first, ledger.chain.last, ledger.url)

    async def net_info(self) -> JSON:
        return {"listening": False, "listeners": [], "n_peers": "0", "peers": []}

    async def genesis(self) -> JSON:
        return {"genesis": comet.genesis_doc(self.ledger.genesis)}

    async def _block(self, height: Any = None) -> Block:
        await self.ledger.settled()
        newest = self.ledger.chain.height
        wanted = _integer(height, "height") if height not in (None, "") else newest
        if not self.ledger.history.first <= wanted <= newest:
            raise LeaseholdError(
                "block_not_found",
                f"height {wanted} must be between {self.ledger.history.first} and the current "
                f"blockchain height {newest}",
                kind=Kind.NOT_FOUND,
                got=wanted,
            )
        return await self.ledger.history.block(wanted)

    async def block(self, height: Any = None) -> JSON:
        return comet.block_answer(self.ledger.genesis, await self._block(height))

    async def block_by_hash(self, hash: str) -> JSON:
        """Only the newest blocks, those in memory, are found by their hash."""
        wanted = _hash(hash)
        for block in self.ledger.history.recent():
            if block.sealed.hash == wanted:
                return comet.block_answer(self.ledger.genesis, block)
        return {"block_id": {"hash": "", "parts": {"total": 0, "hash": ""}}, "block": None}

    async def header(self, height: Any = None) -> JSON:
        return {"header": comet.header(self.ledger.genesis, await self._block(height))}

    async def block_results(self, height: Any = None) -> JSON:
        return comet.block_results(await self._block(height))

    async def blockchain(self, minheight: Any = 0, maxheight: Any = 0) -> JSON:
        await self.ledger.settled()
        newest = self.ledger.chain.height
        most = min(_integer(maxheight, "maxHeight") or newest, newest)
        least = max(_integer(minheight, "minHeight"), self.ledger.history.first)
        least = max(least, most - MAX_BLOCKCHAIN + 1)
        metas = [
            comet.block_meta(self.ledger.genesis, await self.ledger.history.block(height))
            for height in range(most, least - 1, -1)
        ]
        return {"last_height": str(newest), "block_metas": metas}

    async def commit(self, height: Any = None) -> JSON:
        block = await self._block(height)
        genesis = self.ledger.genesis
        return {
            "signed_header": {
                "header": comet.header(genesis, block),
                "commit": comet.commit(genesis, block.sealed),
            },
            "canonical": True,
        }

    async def validators(self, height: Any = None, page: Any = 1, per_page: Any = 30) -> JSON:
        height = _integer(height, "height") if height else self.ledger.chain.height
        member = {**comet.validator(self.ledger.genesis), "proposer_priority": "0"}
        return {
            "block_height": str(height),
            "validators": [member],
            "count": "1",
            "total": "1",
        }

    async def consensus_params(self, height: Any = None) -> JSON:
        height = _integer(height, "height") if height else self.ledger.chain.height
        return {"block_height": str(height), "consensus_params": comet.consensus_params()}

    # -- transactions --------------------------------------------------------------------------

    async def tx(self, hash: str, prove: Any = False) -> JSON:
        found = await self.ledger.find(_hash(hash))
        if found is None:
            raise LeaseholdError(
                "tx_not_found", f"tx ({hash}) not found", kind=Kind.NOT_FOUND, got=hash
            )
        await self.ledger.settled()
        return comet.tx(found.block, found.position, prove=_flag(prove))

    async def tx_search(
        self,
        query: str,
        prove: Any = False,
        page: Any = 1,
        per_page: Any = 30,
        order_by: str = "asc",
    ) -> JSON:
        await self.ledger.settled()
        found = await search_txs(self.ledger, parse(query), descending=_descending(order_by))
        shown = _paged(found, page, per_page)
        txs = [
            comet.tx(await self.ledger.history.block(height), position, prove=_flag(prove))
            for height, position in shown
        ]
        return {"txs": txs, "total_count": str(len(found))}

    async def block_search(
        self, query: str, page: Any = 1, per_page: Any = 30, order_by: str = "asc"
    ) -> JSON:
        await self.ledger.settled()
        found = await search_blocks(self.ledger, parse(query), descending=_descending(order_by))
        shown = _paged(found, page, per_page)
        blocks = [
            comet.block_answer(self.ledger.genesis, await self.ledger.history.block(height))
            for height in shown
        ]
        return {"blocks": blocks, "total_count": str(len(found))}

    async def unconfirmed_txs(self, limit: Any = 30) -> JSON:
        waiting = self.ledger.waiting()
        shown = waiting[: max(0, min(_integer(limit, "limit"), 100))]
        return {
            "n_txs": str(len(shown)),
            "total": str(len(waiting)),
            "total_bytes": str(sum(map(len, waiting))),
            "txs": [comet.b64(raw) for raw in shown],
        }

    async def check_tx(self, tx: str) -> JSON:
        """Only looks: whether the ledger would take the transaction now, apart from its rules."""
        try:
            await self.ledger.inspect(_bytes(tx))
        except LeaseholdError as error:
            return _refused(error)
        return _accepted()

    async def broadcast_tx_sync(self, tx: str) -> JSON:
        raw = _bytes(tx)
        out = {"code": 0, "data": "", "log": "", "codespace": "", "hash": comet.tx_hash(raw)}
        try:
            await self.ledger.check(raw)
        except LeaseholdError as error:
            out.update(code=error.kind.http, log=_log(error), codespace=CODESPACE)
        return out

    async def broadcast_tx_commit(self, tx: str) -> JSON:
        raw = _bytes(tx)
        out = {"check_tx": _accepted(), "tx_result": _accepted(), "hash": comet.tx_hash(raw)}
        try:
            landed = await self.ledger.commit(raw)
        except LeaseholdError as error:
            return {**out, "check_tx": _refused(error), "height": "0"}
        return {**out, "tx_result": comet.tx_result(landed.result), "height": str(landed.height)}

    # -- the state -----------------------------------------------------------------------------

    async def abci_info(self) -> JSON:
        await self.ledger.settled()
        last = self.ledger.chain.last
        return {
            "response": {
                "data": "leasehold",
                "version": "1",
                "app_version": "1",
                "last_block_height": str(last.height),
                "last_block_app_hash": comet.b64(last.app_hash),
            }
        }

    async def abci_query(
        self, path: str = "", data: str = "", height: Any = 0, prove: Any = False
    ) -> JSON:
        """``path`` and ``data`` are explained in ``views``; ``data`` is hex. Proofs are not made,
        and only the newest state can be asked."""
        answer: JSON = {
            "code": 0,
            "log": "",
            "info": "",
            "index": "0",
            "key": None,
            "value": None,
            "proofOps": None,
            "height": "0",
            "codespace": "",
        }
        try:
            question = bytes.fromhex(data.removeprefix("0x"))
            found = await self.ledger.ask(path, question)
            answer["value"] = comet.b64(_encode(found))
            answer["key"] = comet.b64(question) if question else None
        except ValueError:
            raise LeaseholdError("bad_data", "data is hex", kind=Kind.MALFORMED) from None
        except LeaseholdError as error:
            answer.update(code=error.kind.http, log=_log(error), codespace=CODESPACE)
        answer["height"] = str(self.ledger.chain.height)
        return {"response": answer}


def _accepted() -> JSON:
    return {
        "code": 0,
        "data": None,
        "log": "",
        "info": "",
        "gas_wanted": "0",
        "gas_used": "0",
        "events": [],
        "codespace": "",
    }


def _refused(error: LeaseholdError) -> JSON:
    return {**_accepted(), "code": error.kind.http, "log": _log(error), "codespace": CODESPACE}


def _log(error: LeaseholdError) -> str:
    return _encode(error.to_dict()).decode()


def _integer(value: Any, name: str) -> int:
    text = str(value).strip('"')
    if isinstance(value, bool) or not text.isascii() or not text.isdigit() or len(text) > 18:
        raise LeaseholdError(
            "bad_number", f"{name} is a whole number", kind=Kind.MALFORMED, path=name, got=text[:40]
        )
    return int(text)


def _flag(value: Any) -> bool:
    return value is True or value == "true"


def _descending(order: str) -> bool:
    if order not in ("asc", "desc", ""):
        raise LeaseholdError(
            "bad_order", "order_by is asc or desc", kind=Kind.MALFORMED, got=str(order)[:20]
        )
    return order == "desc"


def _paged(found: list[Any], page: Any, per_page: Any) -> list[Any]:
    size = min(max(_integer(per_page, "per_page"), 1), 100)
    at = max(_integer(page, "page"), 1) - 1
    return found[at * size : (at + 1) * size]


def _hash(text: str) -> bytes:
    try:
        plain = str(text).removeprefix("0x")
        # JSON clients send bytes as base64, people and GET parameters as hex.
        found = bytes.fromhex(plain) if len(plain) == 64 else base64.b64decode(plain, validate=True)
    except (ValueError, binascii.Error):
        found = b""
    if len(found) != 32:
        raise LeaseholdError("bad_hash", "a hash has 32 bytes", kind=Kind.MALFORMED, got=text[:80])
    return found


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, TypeError):
        raise LeaseholdError("bad_base64", "tx is base64", kind=Kind.MALFORMED) from None
