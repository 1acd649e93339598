"""The ledger's RPC: the part of CometBFT's that index workers and clients use.

JSON-RPC 2.0 by POST (single or batch), the same methods by GET (``/block?height=5``), and a
websocket at ``/websocket`` that adds subscriptions by query; what there is, is in ``methods``. A
refused transaction comes back as CometBFT does it, with a ``code`` that is not 0; ``log`` is the
error as JSON, ``codespace`` is ``leasehold``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Iterator
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.market.ledger import comet
from leasehold.market.ledger.export import export, history_lines
from leasehold.market.ledger.methods import Methods
from leasehold.market.ledger.service import LedgerService
from leasehold.market.ledger.subscriptions import Subscriber

log = get_logger(__name__)

JSON = dict[str, Any]

MAX_BATCH = 100
"""Requests in one JSON-RPC batch."""

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
        self.methods = Methods(ledger).table

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
            lines: AsyncGenerator[bytes, None] = _pieces(export(ledger.chain))
        else:
            lines = history_lines(ledger.history)
        async with contextlib.aclosing(lines):
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


async def _pieces(lines: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
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


def _failure(
    id: Any, code: int, message: str, data: str, error: LeaseholdError | None = None
) -> JSON:
    out: JSON = {"code": code, "message": message, "data": data}
    if error is not None:
        out["leasehold"] = {**error.to_dict(), "status": error.kind.http}
    return {"jsonrpc": "2.0", "id": id, "error": out}


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
