"""A node to test against: made-up blocks behind a real CometBFT RPC, in the shape of any version.

``FakeNode`` is a service with HTTP JSON-RPC and a websocket. ``add`` makes a block and announces
it; ``muted`` keeps the websocket open but says nothing any more; ``broken`` heights are answered
with an error. ``Proxy`` stands in front of it and can freeze: connections stay, bytes do not move.
:func:`indexing` puts a manager, a worker and a store behind a node.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from leasehold.core.clock import Clock
from leasehold.core.service import Service, running
from leasehold.core.web import HttpServer
from leasehold.dispatch.manager import Manager
from leasehold.dispatch.settings import DispatchSettings
from leasehold.dispatch.testing import MemoryNetwork
from leasehold.dispatch.worker import Worker
from leasehold.index.cometbft import tx_hash
from leasehold.index.handlers import worker_handlers
from leasehold.index.operations import Operations
from leasehold.index.settings import IndexSettings
from leasehold.index.store import Store

FIRST_TIME = datetime(2026, 1, 1, tzinfo=UTC)

Events = Sequence[tuple[str, Sequence[tuple[str, str]]]]


class FakeTx(msgspec.Struct):
    raw: bytes
    events: Events = ()
    code: int = 0
    log: str = ""


class FakeNode(Service):
    """``version`` decides the shape: below 0.37 base64 attributes, from 0.38 finalize events."""

    def __init__(
        self,
        *,
        chain_id: str = "test-1",
        version: str = "0.38.9",
        first: int = 1,
        clock: Clock | None = None,
        port: int = 0,
    ) -> None:
        super().__init__("fake node", clock=clock)
        self.chain_id = chain_id
        self.version = version
        self.first = first
        self.port = port
        self.broken: set[int] = set()
        self.muted = False
        self.held: dict[int, asyncio.Event] = {}
        """Heights that are answered only when their event is set."""
        self.calls: dict[str, int] = {}
        self.queries: Callable[[str, bytes, int], bytes | None] = lambda path, data, height: None
        """What ``abci_query`` answers: path, data and height to the value; None refuses."""
        self._answers: list[tuple[bytes, bytes, bytes]] = []
        self._found: dict[str, dict[str, Any]] = {}
        self._sockets: set[Callable[[bytes], Awaitable[None]]] = set()

    async def start(self) -> None:
        self._http = HttpServer(self, port=self.port, name="fake node")
        await self.resources.enter_async_context(running(self._http))
        self.port = self._http.port

    @property
    def url(self) -> str:
        return self._http.url

    @property
    def head(self) -> int:
        return self.first + len(self._answers) - 1

    # blocks

    def make(self, txs: Sequence[FakeTx] = (), block_events: Events = ()) -> None:
        """Append a block without announcing it."""
        height = self.head + 1
        hash_ = hashlib.sha256(f"{self.chain_id}/{height}".encode()).hexdigest().upper()
        time = (FIRST_TIME + timedelta(seconds=height)).isoformat().replace("+00:00", "Z")
        header = {"chain_id": self.chain_id, "height": str(height), "time": time}
        block = {
            "block_id": {"hash": hash_, "parts": {"total": 1, "hash": hash_}},
            "block": {
                "header": header,
                "data": {"txs": [base64.b64encode(tx.raw).decode() for tx in txs]},
                "evidence": {"evidence": []},
            },
        }
        results: dict[str, Any] = {
            "height": str(height),
            "txs_results": [self._result(tx) for tx in txs] or None,
        }
        if self._minor >= 38:
            results["finalize_block_events"] = self._events(block_events) or None
        else:
            results["begin_block_events"] = self._events(block_events) or None
            results["end_block_events"] = None
        for index, tx in enumerate(txs):
            self._found[tx_hash(tx.raw)] = {
                "hash": tx_hash(tx.raw),
                "height": str(height),
                "index": index,
                "tx": base64.b64encode(tx.raw).decode(),
                "tx_result": self._result(tx),
            }
        pushed = {
            "query": "tm.event='NewBlock'",
            "data": {"type": "tendermint/event/NewBlock", "value": {"block": block["block"]}},
        }
        encode = msgspec.json.encode
        self._answers.append((encode(block), encode(results), _envelope(1, encode(pushed))))

    async def add(self, txs: Sequence[FakeTx] = (), block_events: Events = ()) -> int:
        """Append a block and announce it; returns its height."""
        self.make(txs, block_events)
        if not self.muted:
            for send in list(self._sockets):
                await send(self._answers[-1][2])
        return self.head

    @property
    def _minor(self) -> int:
        return int(self.version.removeprefix("v").split(".")[1])

    def _events(self, events: Events) -> list[dict[str, Any]]:
        write = _base64 if self._minor < 37 else str
        return [
            {
                "type": type_,
                "attributes": [
                    {"key": write(key), "value": write(value), "index": True}
                    for key, value in attributes
                ],
            }
            for type_, attributes in events
        ]

    def _result(self, tx: FakeTx) -> dict[str, Any]:
        return {
            "code": tx.code,
            "data": None,
            "log": tx.log,
            "info": "",
            "gas_wanted": "100",
            "gas_used": "50",
            "events": self._events(tx.events),
            "codespace": "",
        }

    # the RPC

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        if scope["type"] == "websocket":
            await self._websocket(receive, send)
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        request = msgspec.json.decode(body)
        height = int((request.get("params") or {}).get("height") or 0)
        if height in self.held:
            await self.held[height].wait()
        content = self._respond(request)
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"application/json")],
            }
        )
        await send({"type": "http.response.body", "body": content})

    def _respond(self, request: dict[str, Any]) -> bytes:
        method, params = request["method"], request.get("params", {})
        self.calls[method] = self.calls.get(method, 0) + 1
        id_ = request.get("id", 1)
        if method == "status":
            return _envelope(id_, msgspec.json.encode(self._status()))
        if method in ("block", "block_results"):
            height = int(params.get("height") or self.head)
            if height in self.broken or not self.first <= height <= self.head:
                return _refusal(id_, f"height {height} is not available")
            block, results, _ = self._answers[height - self.first]
            return _envelope(id_, block if method == "block" else results)
        if method == "abci_query":
            height = int(params.get("height") or 0)
            value = self.queries(params["path"], bytes.fromhex(params["data"]), height)
            response = {
                "code": int(value is None),
                "log": "nothing there" if value is None else "",
                "value": base64.b64encode(value or b"").decode() or None,
                "height": str(height or self.head),
            }
            return _envelope(id_, msgspec.json.encode({"response": response}))
        if method == "tx_search":
            hash_ = params["query"].partition("'")[2].rstrip("'")
            found = [self._found[hash_]] if hash_ in self._found else []
            return _envelope(
                id_, msgspec.json.encode({"txs": found, "total_count": str(len(found))})
            )
        return _refusal(id_, f"no method {method}")

    def _status(self) -> dict[str, Any]:
        return {
            "node_info": {"network": self.chain_id, "version": self.version},
            "sync_info": {
                "latest_block_hash": "",
                "latest_block_height": str(self.head),
                "latest_block_time": "2026-01-01T00:00:00Z",
                "earliest_block_height": str(self.first),
                "catching_up": False,
            },
        }

    async def _websocket(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})

        async def push(data: bytes) -> None:
            with contextlib.suppress(Exception):
                await send({"type": "websocket.send", "text": data.decode()})

        try:
            while True:
                message = await receive()
                if message["type"] != "websocket.receive":
                    return
                request = msgspec.json.decode(message["text"])
                if request["method"] == "subscribe":
                    await push(_envelope(request["id"], b"{}"))
                    self._sockets.add(push)
        finally:
            self._sockets.discard(push)


@contextlib.asynccontextmanager
async def indexing(
    node: FakeNode,
    folder: Path,
    *,
    store_url: str = "",
    http: bool = False,
    app: Callable[[Operations], Any] | None = None,
    **changed: Any,
) -> AsyncIterator[Operations]:
    """Operations on ``node``: a manager and a worker in memory, a store in ``folder``.

    With ``http`` the manager serves its HTTP API, with what ``app`` makes of the operations.
    """
    settings = IndexSettings(
        **{"network": "cosmos", "chain_id": node.chain_id, "rpc": node.url, **changed}
    )
    base = DispatchSettings(
        network="cosmos", chain_id=node.chain_id, manager_port=0, managers=(), drain_timeout=0.5
    )
    net = MemoryNetwork()
    manager = Manager(settings=base, dialers=[net.dialer()], http=http)
    store = Store(store_url) if store_url else Store.at(folder / "index.db")
    operations = Operations(manager, store, settings)
    operations.register()
    if app is not None:
        manager.mount(app(operations))
    worker = Worker(
        settings=base, handlers=worker_handlers(settings), listener=net.listener("worker")
    )
    async with running(store), running(manager), running(worker):
        net.announce(manager, worker)
        await manager.wait_for_worker("cosmos", node.chain_id)
        yield operations


class Proxy(Service):
    """A TCP proxy to ``port`` on loopback that can freeze: all of it, or what is open so far."""

    def __init__(self, port: int) -> None:
        super().__init__("proxy")
        self._to = port
        self._thaw = asyncio.Event()
        self._thaw.set()
        self._open = 0
        self._lost = 0
        self.port = 0

    async def start(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.resources.callback(server.close)
        self.port = server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def freeze(self) -> None:
        self._thaw.clear()

    def thaw(self) -> None:
        self._thaw.set()

    def lose(self) -> None:
        """Connections open so far stay, for ever silent, as when a router forgot them."""
        self._lost = self._open

    async def _connected(self, a: asyncio.StreamReader, b: asyncio.StreamWriter) -> None:
        c, d = await asyncio.open_connection("127.0.0.1", self._to)
        self._open += 1
        number = self._open
        pumps = [self.spawn(self._pump(a, d, number)), self.spawn(self._pump(c, b, number))]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for writer in (b, d):
            writer.close()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, number: int
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                await self._thaw.wait()
                if number > self._lost:
                    sink.write(data)
                    await sink.drain()


def _envelope(id_: Any, result: bytes) -> bytes:
    return b'{"jsonrpc":"2.0","id":' + msgspec.json.encode(id_) + b',"result":' + result + b"}"


def _refusal(id_: Any, why: str) -> bytes:
    error = {"code": -32603, "message": "Internal error", "data": why}
    return msgspec.json.encode({"jsonrpc": "2.0", "id": id_, "error": error})


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
