"""The HTTP side of a manager: announcements, the list of workers, JSON-RPC, health.

``POST /client_ping`` answers at once; dialling the worker goes on behind it. ``GET /get_workers``
has the original's shape. ``/ws`` speaks JSON-RPC. ``/readiness`` is 503 while a required network
has no worker. ``POST /loglevel`` changes how much is logged. Any other path goes to the mounted
application.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import msgspec

from leasehold.core import logs
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.dispatch import jsonrpc, metrics
from leasehold.dispatch.registry import ClientPing, WorkerRecord, WorkerState
from leasehold.dispatch.security import check_token

if TYPE_CHECKING:
    from leasehold.dispatch.manager import Manager

LEVELS = {
    "panic": "critical", "fatal": "critical", "critical": "critical", "error": "error",
    "warn": "warning", "warning": "warning", "info": "info", "debug": "debug",
}  # fmt: skip

log = logs.get_logger(__name__)

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class ManagerApp:
    """An ASGI application."""

    def __init__(
        self, manager: Manager, *, methods: Mapping[str, jsonrpc.Method], fallback: Any = None
    ) -> None:
        self.manager = manager
        self.fallback = fallback
        self.methods: dict[str, jsonrpc.Method] = {"get_workers": self._rpc_workers, **methods}
        self._websockets = 0
        self._routes: dict[str, tuple[str, Callable[[Any, bytes], Any]]] = {
            "/client_ping": ("POST", self._client_ping),
            "/get_workers": ("GET", self._get_workers),
            "/health": ("GET", lambda _scope, _body: {"status": "ok"}),
            "/liveness": ("GET", lambda _scope, _body: {}),
            "/readiness": ("GET", self._readiness),
            "/loglevel": ("POST", self._loglevel),
        }

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            if self.fallback is not None:
                await self.fallback(scope, receive, send)
            else:
                await _lifespan(receive, send)
        elif scope["type"] == "websocket" and scope["path"] == "/ws":
            await self._websocket(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] in self._routes:
            await self._http(scope, receive, send)
        elif self.fallback is not None:
            await self.fallback(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 4404})
        else:
            await _json(send, 404, _no_route(scope["path"]).to_dict())

    async def _http(self, scope: Any, receive: Receive, send: Send) -> None:
        method, handler = self._routes[scope["path"]]
        try:
            if scope["method"] != method and not (method == "GET" and scope["method"] == "HEAD"):
                error = LeaseholdError(
                    "method_not_allowed", f"{scope['path']} takes {method}", expected=method
                )
                await _json(send, 405, error.to_dict(), allow=method)
                return
            body = await read_body(receive, self.manager.settings.max_http_body)
            await _json(send, 200, handler(scope, body))
        except LeaseholdError as error:
            await _json(send, error.kind.http, error.to_dict())

    # announcements

    def _client_ping(self, scope: Any, body: bytes) -> Any:
        try:
            check_token(self.manager.settings.token, _header(scope, b"authorization"))
            if self.manager.admit is not None:
                headers = scope["headers"]
                self.manager.admit(body, {k.decode(): v.decode("latin-1") for k, v in headers})
            try:
                ping = msgspec.json.decode(body, type=ClientPing)
            except msgspec.MsgspecError as error:
                raise LeaseholdError(
                    "bad_ping", f"not an announcement: {error}", kind=Kind.MALFORMED
                ) from None
            client = scope.get("client") or ("", 0)
            worker = self.manager.registry.ping(ping, str(client[0]))
        except LeaseholdError as error:
            metrics.REFUSED_PINGS.labels(error.code).inc()
            raise
        return {"state": int(worker.state)}

    # who is there

    def _get_workers(self, _scope: Any, _body: bytes) -> Any:
        return self.workers()

    async def _rpc_workers(self, _params: list[Any]) -> Any:
        return self.workers()

    def workers(self) -> dict[str, Any]:
        """network -> workers by id, how many there are, how many are online."""
        out: dict[str, Any] = {}
        for worker in self.manager.registry.workers.values():
            network = out.setdefault(worker.network, {"workers": {}, "all": 0, "active": 0})
            network["workers"][worker.id] = describe(worker)
            network["all"] += 1
            network["active"] += worker.state is WorkerState.ONLINE
        return out

    def _readiness(self, _scope: Any, _body: bytes) -> Any:
        unserved = self.manager.unserved()
        if unserved:
            raise LeaseholdError(
                "no_workers",
                f"no worker is online for {', '.join(unserved)}",
                kind=Kind.UNAVAILABLE,
                got=", ".join(unserved),
                retry_after=5.0,
            )
        workers = self.manager.registry.workers.values()
        return {"workers_online": sum(w.state is WorkerState.ONLINE for w in workers)}

    def _loglevel(self, scope: Any, _body: bytes) -> Any:
        """``?level=debug``; the original's ``panic`` and ``fatal`` are ``critical`` here."""
        check_token(self.manager.settings.token, _header(scope, b"authorization"))
        wanted = parse_qs(scope["query_string"].decode("latin-1")).get("level", [""])[0].lower()
        level = LEVELS.get(wanted)
        if level is None:
            raise LeaseholdError(
                "bad_level", f"{wanted!r} is no log level", kind=Kind.MALFORMED, path="level",
                expected=" ".join(LEVELS), got=wanted,
            )  # fmt: skip
        logs.set_level(level)
        log.info("log.level", level=level)
        return {"level": level}

    # JSON-RPC

    async def _websocket(self, scope: Any, receive: Receive, send: Send) -> None:
        if (await receive())["type"] != "websocket.connect":
            return
        try:
            check_token(self.manager.settings.token, _header(scope, b"authorization"))
        except LeaseholdError:
            await send({"type": "websocket.close", "code": 4401})
            return
        if self._websockets >= self.manager.settings.max_websockets:
            await send({"type": "websocket.close", "code": 4429})
            return
        await send({"type": "websocket.accept"})

        async def incoming() -> str | bytes | None:
            message = await receive()
            if message["type"] != "websocket.receive":
                return None
            return message.get("text") or message.get("bytes") or ""

        async def outgoing(data: bytes) -> None:
            # A peer that left gets no answer; that is no reason to fail.
            with contextlib.suppress(Exception):
                await send({"type": "websocket.send", "text": data.decode()})

        self._websockets += 1
        try:
            await jsonrpc.serve(self.methods, incoming, outgoing)
        finally:
            self._websockets -= 1


def describe(worker: WorkerRecord) -> dict[str, Any]:
    """One worker as ``/get_workers`` shows it."""
    session = worker.session
    tasks: dict[str, Any] = {"worker_id": worker.id, "ResponseMap": {}}
    if session is not None:
        tasks["stream_id"] = session.id
        tasks["stream_state"] = 2 if session.closed else 1
        tasks["last_send"] = _time(session.last_send)
        for attempt in session.attempts.values():
            tasks["ResponseMap"][attempt.id] = {
                "created": _time(
                    session.clock.now() - session.clock.monotonic() + attempt.given_at
                ),
                "state": int(not attempt.task.done),
                "received_finals": 0,
                "expected": [attempt.id],
            }
    host, _, _ = worker.address.rpartition(":")
    return {
        "node_id": worker.id,
        "type": worker.network,
        "chain_id": worker.chain_id,
        "state": int(worker.state),
        "state_name": worker.state.name.lower(),
        "problem": worker.problem,
        "connection": [
            {
                "version": worker.version,
                "type": worker.type,
                "addresses": [{"ip": worker.ip or host, "address": worker.address}],
            }
        ],
        "last_check": _time(worker.last_check),
        "latency": session.latency if session is not None else None,
        "tasks": tasks,
    }


def _time(at: float) -> str | None:
    return datetime.fromtimestamp(at, UTC).isoformat() if at else None


def _header(scope: Any, name: bytes) -> str | None:
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


async def read_body(receive: Receive, limit: int) -> bytes:
    """The whole body; LeaseholdError ``body_too_large`` beyond ``limit`` bytes."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise LeaseholdError("disconnected", "the client left", kind=Kind.MALFORMED)
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise LeaseholdError(
                "body_too_large",
                f"the body is larger than {limit} bytes",
                kind=Kind.TOO_LARGE,
                expected=limit,
            )
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


async def _json(send: Send, status: int, value: Any, **headers: str) -> None:
    body = msgspec.json.encode(value)
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                *((k.encode(), v.encode()) for k, v in headers.items()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


def _no_route(path: str) -> LeaseholdError:
    return LeaseholdError("no_route", f"nothing at {path}", kind=Kind.NOT_FOUND, got=path)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
