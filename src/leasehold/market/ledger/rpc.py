"""The ledger's RPC: the part of CometBFT's that index workers and clients use.

JSON-RPC 2.0 by POST (single or batch), the same methods by GET (``/block?height=5``), and a
websocket at ``/websocket`` that adds subscriptions by query. Shapes are in ``comet``. A refused
transaction comes back as CometBFT does it, with a ``code`` that is not 0; ``log`` is the error as
JSON, ``codespace`` is ``leasehold``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.market.ledger import comet
from leasehold.market.ledger.chain import Block
from leasehold.market.ledger.export import export, history_lines
from leasehold.market.ledger.query import parse
from leasehold.market.ledger.search import search_blocks, search_txs
from leasehold.market.ledger.service import LedgerService
from leasehold.market.ledger.subscriptions import Subscriber

log = get_logger(__name__)

JSON = dict[str, Any]

MAX_BATCH = 100
"""Requests in one JSON-RPC batch."""

MAX_BLOCKCHAIN = 20
"""Block headers in one answer of ``blockchain``, as CometBFT has it."""

CODESPACE = "leasehold"

_encode = msgspec.json.encode


class Request(msgspec.Struct, frozen=True):
    method: str
    params: dict[str, Any] | list[Any] | None = None
    id: int | str | None = None
    jsonrpc: str = "2.0"


_request = msgspec.json.Decoder(Request)
_requests = msgspec.json.Decoder(list[Request])


class Rpc:
    """An ASGI application over a running ledger."""

    def __init__(self, ledger: LedgerService) -> None:
        self.ledger = ledger
        self.connections = 0
        self.methods: dict[str, tuple[Callable[..., Awaitable[Any]], tuple[str, ...]]] = {
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

    async def __call__(self, scope: JSON, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["method"] == "POST":
            await self._post(receive, send)
        elif scope["method"] == "GET":
            await self._get(scope, send)
        else:
            await _respond(send, 405, _encode({"code": "method_not_allowed"}))

    # -- transports ----------------------------------------------------------------------------

    async def _post(self, receive: Any, send: Any) -> None:
        limit = 4 * self.ledger.settings.max_tx_bytes
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > limit:
                await _respond(
                    send, 413, _encode(_failure(None, -32600, "Invalid Request", "too large"))
                )
                return
            if not message.get("more_body"):
                break
        await _respond(send, 200, await self.handle(body))

    async def handle(self, body: bytes) -> bytes:
        """Answer a JSON-RPC document."""
        try:
            if body.lstrip()[:1] == b"[":
                requests = _requests.decode(body)
                if not 0 < len(requests) <= MAX_BATCH:
                    raise ValueError(f"a batch has 1 to {MAX_BATCH} requests")
                return _encode([await self.call(r) for r in requests])
            request = _request.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            return _encode(_failure(None, -32700, "Parse error", str(error)[:300]))
        return _encode(await self.call(request))

    async def _get(self, scope: JSON, send: Any) -> None:
        method = scope["path"].strip("/")
        if method in ("export", "history"):
            await self._stream(method, send)
            return
        if method == "":
            endpoints = "\n".join(sorted(self.methods)) + "\n"
            await _respond(send, 200, endpoints.encode(), content=b"text/plain")
            return
        if method not in self.methods:
            await _respond(send, 404, _encode(_failure(-1, -32601, "Method not found", method)))
            return
        try:
            pairs = parse_qsl(scope["query_string"].decode(), max_num_fields=16)
        except (ValueError, UnicodeDecodeError) as error:
            await _respond(send, 400, _encode(_failure(-1, -32602, "Invalid params", str(error))))
            return
        params = {key: _uri_value(key, value) for key, value in pairs}
        answer = await self.call(Request(method, params, -1))
        await _respond(send, 500 if "error" in answer else 200, _encode(answer))

    async def _stream(self, what: str, send: Any) -> None:
        """The whole ledger as lines of JSON (see ``export``), never in memory at once."""
        ledger = self.ledger
        await ledger.settled()
        headers = [(b"content-type", b"application/jsonl")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if what == "export":
            lines = _pieces(export(ledger.chain))
        else:
            lines = history_lines(ledger.history, ledger.genesis)
        async for line in lines:
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _websocket(self, scope: JSON, receive: Any, send: Any) -> None:
        await receive()
        if scope["path"] != "/websocket" or self.connections >= (
            self.ledger.settings.max_connections
        ):
            await send({"type": "websocket.close", "code": 1013})
            return
        await send({"type": "websocket.accept"})
        self.connections += 1
        try:
            await Subscriber(self, self.ledger, receive, send).run()
        finally:
            self.connections -= 1

    async def call(self, request: Request) -> JSON:
        """Run one request."""
        entry = self.methods.get(request.method)
        if entry is None:
            return _failure(request.id, -32601, "Method not found", request.method)
        method, names = entry
        params = request.params or {}
        if isinstance(params, list):
            if len(params) > len(names):
                return _failure(request.id, -32602, "Invalid params", f"expected {list(names)}")
            params = dict(zip(names, params, strict=False))
        unknown = set(params) - set(names)
        if unknown:
            return _failure(
                request.id, -32602, "Invalid params", f"unknown {sorted(unknown)}, expected {names}"
            )
        try:
            result = await method(**{k.lower(): v for k, v in params.items() if v is not None})
        except LeaseholdError as error:
            code = -32602 if error.kind is Kind.MALFORMED else -32603
            message = "Invalid params" if code == -32602 else "Internal error"
            if error.code == "bad_query":
                code, message = -32603, "Internal error"
            return _failure(request.id, code, message, error.message, error)
        except TypeError as error:
            return _failure(request.id, -32602, "Invalid params", str(error)[:200])
        return {"jsonrpc": "2.0", "id": request.id, "result": result}

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
        txs = [comet.tx(block, position, prove=_flag(prove)) for block, position in shown]
        return {"txs": txs, "total_count": str(len(found))}

    async def block_search(
        self, query: str, page: Any = 1, per_page: Any = 30, order_by: str = "asc"
    ) -> JSON:
        await self.ledger.settled()
        found = await search_blocks(self.ledger, parse(query), descending=_descending(order_by))
        shown = _paged(found, page, per_page)
        blocks = [comet.block_answer(self.ledger.genesis, block) for block in shown]
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


async def _pieces(lines: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Some hundred lines at a time, letting others run in between."""
    while piece := b"".join(itertools.islice(lines, 500)):
        yield piece
        await asyncio.sleep(0)


def _uri_value(key: str, value: str) -> Any:
    """GET parameters: strings are quoted, ``0x`` is hex; a tx in hex becomes base64."""
    if len(value) >= 2 and value[0] == value[-1] == '"':
        text = value[1:-1]
        return comet.b64(text.encode()) if key == "tx" else text
    if key == "tx" and value.startswith("0x"):
        try:
            return comet.b64(bytes.fromhex(value[2:]))
        except ValueError:
            return value
    return value


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


def _failure(
    id: Any, code: int, message: str, data: str, error: LeaseholdError | None = None
) -> JSON:
    out: JSON = {"code": code, "message": message, "data": data}
    if error is not None:
        out["leasehold"] = {**error.to_dict(), "status": error.kind.http}
    return {"jsonrpc": "2.0", "id": id, "error": out}


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


async def _respond(
    send: Any, status: int, body: bytes, content: bytes = b"application/json"
) -> None:
    headers = [(b"content-type", content), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
