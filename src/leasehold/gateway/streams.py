"""Websockets of a lease: logs, events and a shell.

A request that may not be is refused with an HTTP status before the websocket opens. After that the
close code says what went wrong: 4000 internal, 4001 not found, 4002 the runtime does not answer;
1000 is the normal end. Pings every few seconds end connections whose client is gone.

Shell frames are binary; the first byte says what follows: 100 standard output, 101 standard error,
102 the result as JSON ``{"exit_code", "message"?}``, 103 failure, and from the client 104 standard
input (empty: its end) and 105 a new terminal size (two big-endian 16-bit numbers: width, height).
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec
from litestar import WebSocket, websocket
from litestar.exceptions import WebSocketDisconnect
from litestar.handlers import BaseRouteHandler

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.events.event import Entity, Event
from leasehold.gateway.auth import Authenticator
from leasehold.gateway.claims import Principal
from leasehold.gateway.ports import STDERR, Exec, Workloads
from leasehold.gateway.settings import GatewaySettings
from leasehold.manifest.service import ManifestService
from leasehold.model.market import LeaseId

log = get_logger(__name__)

Socket = WebSocket[Any, Any, Any]

INTERNAL, NOT_FOUND, UNAVAILABLE, NORMAL = 4000, 4001, 4002, 1000
OUT, ERR, RESULT, FAILURE, IN, RESIZE = 100, 101, 102, 103, 104, 105
MAX_ARGUMENTS = 256
SIZE = struct.Struct(">HH")

WARNINGS = ("deploy.failed", "deploy.unhealthy", "deploy.exited", "manifest.bid_closed")
LAST = ("lease.closed", "deploy.removed")


def routes(
    manifest: ManifestService,
    workloads: Workloads | None,
    clock: Clock,
    settings: GatewaySettings,
) -> Sequence[BaseRouteHandler]:
    """The websocket routes; logs and shell need ``workloads``."""

    def lease_of(socket: Socket, principal: Principal) -> LeaseId:
        path = socket.path_params
        return LeaseId(principal.owner, path["dseq"], path["gseq"], path["oseq"], manifest.provider)

    def runtime() -> Workloads:
        if workloads is None:
            raise LeaseholdError(
                "no_runtime", "this provider runs no workloads", kind=Kind.UNSUPPORTED
            )
        return workloads

    async def known(id: LeaseId) -> None:
        state = await manifest.lease(id)
        if not state.received:
            raise LeaseholdError("not_found", f"{id} has no manifest", kind=Kind.NOT_FOUND)

    @websocket("/lease/{dseq:int}/{gseq:int}/{oseq:int}/logs")
    async def logs(socket: Socket) -> None:
        async def prepare(principal: Principal) -> Body:
            id = lease_of(socket, principal)
            wanted = _services(socket)
            follow, tail = _flag(socket, "follow"), _number(socket, "tail", -1, -1)
            wanted = permitted(principal, "logs", id, wanted)
            source = runtime()

            async def body() -> None:
                await known(id)
                async for line in source.logs(id, wanted, follow=follow, tail=tail):
                    await socket.send_text(
                        msgspec.json.encode({"name": line.name, "message": line.message}).decode()
                    )

            return body

        await _serve(socket, "logs", prepare)

    @websocket("/lease/{dseq:int}/{gseq:int}/{oseq:int}/kubeevents")
    async def events(socket: Socket) -> None:
        async def prepare(principal: Principal) -> Body:
            id = lease_of(socket, principal)
            follow = _flag(socket, "follow", default=True)

            async def body() -> None:
                async for frame in _frames(manifest, id, follow=follow):
                    await socket.send_text(msgspec.json.encode(frame).decode())

            return body

        await _serve(socket, "events", prepare)

    @websocket("/lease/{dseq:int}/{gseq:int}/{oseq:int}/shell")
    async def shell(socket: Socket) -> None:
        async def prepare(principal: Principal) -> Body:
            id = lease_of(socket, principal)
            talk = conversation(socket, id, runtime())
            service = _required(socket, "service")
            principal.require("shell", id.dseq, id.gseq, id.oseq, service)

            async def body() -> None:
                await known(id)
                await talk()

            return body

        await _serve(socket, "shell", prepare, reads=True)

    return [logs, events, shell]


Body = Callable[[], Awaitable[None]]


async def _serve(
    socket: Socket,
    scope: str,
    prepare: Callable[[Principal], Awaitable[Body]],
    *,
    reads: bool = False,
) -> None:
    """Authenticate, accept, run the body until it or the client is done, close with the code."""
    auth: Authenticator = socket.app.state.auth
    try:
        principal = await auth.tenant(socket)
        path = socket.path_params
        principal.require(scope, path["dseq"], path["gseq"], path["oseq"])
        body = await prepare(principal)
    except LeaseholdError as error:
        await refuse(socket, error)
        return
    await converse(socket, body if reads else lambda: _until_gone(socket, body))


def conversation(socket: Socket, id: LeaseId, source: Workloads) -> Body:
    """A shell in a service of ``id`` as the query asks for it; LeaseholdError when it is wrong."""
    service = _required(socket, "service")
    tty, stdin = _required_flag(socket, "tty"), _required_flag(socket, "stdin")
    replica = _number(socket, "podIndex", None, 0)
    command = _command(socket)

    async def body() -> None:
        running = await source.exec(id, service, command, replica=replica, tty=tty, stdin=stdin)
        try:
            await _converse(socket, running, stdin=stdin)
        finally:
            await running.kill()

    return body


async def converse(socket: Socket, body: Body) -> None:
    """Open the websocket, run the body, close with what became of it."""
    await socket.accept()
    code, reason = NORMAL, ""
    try:
        await body()
    except WebSocketDisconnect:
        return
    except LeaseholdError as error:
        code, reason = _code(error), error.message
    except Exception as error:
        log.exception("stream.bug", path=socket.url.path, error=repr(error))
        code, reason = INTERNAL, "something went wrong here; it was logged"
    with contextlib.suppress(Exception):
        await socket.close(code=code, reason=_fit(reason))


def _code(error: LeaseholdError) -> int:
    if error.kind is Kind.NOT_FOUND:
        return NOT_FOUND
    return UNAVAILABLE if error.kind in (Kind.UNAVAILABLE, Kind.TIMEOUT) else INTERNAL


def _fit(reason: str) -> str:
    """A close reason has at most 123 bytes."""
    return reason.encode()[:123].decode("utf-8", "ignore")


async def refuse(socket: Socket, error: LeaseholdError) -> None:
    """Answer a websocket request with an HTTP status instead of opening it."""
    if "websocket.http.response" not in (socket.scope.get("extensions") or {}):
        await socket.close(code=4000 + error.kind.http, reason=_fit(error.message))
        return
    body = msgspec.json.encode(error.to_dict())
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    send: Any = socket.send
    await send(
        {
            "type": "websocket.http.response.start",
            "status": error.kind.http,
            "headers": headers,
        }
    )
    await send({"type": "websocket.http.response.body", "body": body})


async def _until_gone(socket: Socket, body: Body) -> None:
    """Run ``body``, but not longer than there is a client."""

    async def listen() -> None:
        while True:
            await socket.receive_data("text")

    work = asyncio.ensure_future(body())
    ear = asyncio.ensure_future(listen())
    try:
        done, _ = await asyncio.wait({work, ear}, return_when=asyncio.FIRST_COMPLETED)
        if work not in done:
            raise WebSocketDisconnect(detail="the client left")
        work.result()
    finally:
        for task in (work, ear):
            task.cancel()
        await asyncio.gather(work, ear, return_exceptions=True)


async def _converse(socket: Socket, running: Exec, *, stdin: bool) -> None:
    """Carry output to the client and input to the command until it ends."""

    async def carry_out() -> None:
        async for stream, data in running.output():
            await socket.send_bytes(bytes([ERR if stream == STDERR else OUT]) + data)
        exit_code = await running.wait()
        result = msgspec.json.encode({"exit_code": exit_code})
        await socket.send_bytes(bytes([RESULT]) + result)

    async def carry_in() -> None:
        while True:
            frame = await socket.receive_bytes()
            kind, data = frame[:1], frame[1:]
            if kind == bytes([IN]) and stdin:
                if data:
                    await running.write(data)
                else:
                    await running.close_input()
            elif kind == bytes([RESIZE]) and len(data) == SIZE.size:
                await running.resize(*SIZE.unpack(data))

    out, into = asyncio.ensure_future(carry_out()), asyncio.ensure_future(carry_in())
    try:
        done, _ = await asyncio.wait({out, into}, return_when=asyncio.FIRST_COMPLETED)
        if out not in done:
            into.result()
        out.result()
    except LeaseholdError:
        await socket.send_bytes(bytes([FAILURE]))
        raise
    finally:
        for task in (out, into):
            task.cancel()
        await asyncio.gather(out, into, return_exceptions=True)


async def _frames(
    manifest: ManifestService, id: LeaseId, *, follow: bool
) -> AsyncIterator[dict[str, Any]]:
    """What happened to a lease and, with ``follow``, what happens, until it is closed."""
    entity = Entity("lease", str(id))
    if await manifest.log.head(entity) is None:
        raise LeaseholdError("lease_not_found", f"no lease {id}", kind=Kind.NOT_FOUND)
    over = False
    async for item in manifest.log.read(entity, watch=follow):
        if isinstance(item, Event):
            over = over or item.type in LAST
            yield event_frame(item, id)
        elif over:
            return


def event_frame(event: Event, id: LeaseId) -> dict[str, Any]:
    """An event of a lease as orchestrators write events. Never holds a manifest's content."""
    try:
        values: dict[str, Any] = msgspec.json.decode(event.data)
    except msgspec.DecodeError:
        values = {}
    shown = {
        key: value
        for key, value in values.items()
        if key in ("service", "replica", "reference", "status", "reason", "message", "hash", "code")
    }
    service = values.get("service")
    return {
        "type": "Warning" if event.type in WARNINGS else "Normal",
        "reportingController": "leasehold",
        "reportingInstance": id.provider,
        "reason": "".join(w.capitalize() for w in event.type.replace(".", "_").split("_")),
        "note": " ".join(f"{key}={value}" for key, value in shown.items()) or event.type,
        "object": {
            "kind": "Service" if service else "Lease",
            "namespace": str(id),
            "name": service or str(id),
        },
        "at": event.at,
    }


# Query parameters


def _value(socket: Socket, name: str) -> str | None:
    values = socket.query_params.getall(name, [])
    if len(values) > 1:
        raise _bad(name, "one value", ", ".join(values))
    return str(values[0]) if values else None


def _bad(name: str, expected: str, got: str | None) -> LeaseholdError:
    return LeaseholdError(
        "bad_query",
        f"query parameter {name!r} is wrong",
        kind=Kind.MALFORMED,
        path=name,
        expected=expected,
        got="nothing" if got is None else got[:100],
    )


def _required(socket: Socket, name: str) -> str:
    value = _value(socket, name)
    if not value:
        raise _bad(name, "a value", value)
    return value


def _flag(socket: Socket, name: str, *, default: bool = False) -> bool:
    value = _value(socket, name)
    if value is None:
        return default
    if value.lower() not in ("true", "false", "1", "0"):
        raise _bad(name, "true | false", value)
    return value.lower() in ("true", "1")


def _required_flag(socket: Socket, name: str) -> bool:
    if _value(socket, name) is None:
        raise _bad(name, "true | false", None)
    return _flag(socket, name)


def _number(socket: Socket, name: str, default: int | None, least: int) -> int:
    value = _value(socket, name)
    if value is None and default is not None:
        return default
    digits = (value or "").removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 9 or int(value or 0) < least:
        raise _bad(name, f"a number ≥ {least}", value)
    return int(value or 0)


def _services(socket: Socket) -> list[str]:
    """The comma list ``service``; ``services``, as clients have sent it, means the same."""
    value = _value(socket, "service") or _value(socket, "services")
    if not value:
        return []
    names = value.split(",")
    if not all(names):
        raise _bad("service", "names between commas", value)
    return list(dict.fromkeys(names))


def permitted(principal: Principal, scope: str, id: LeaseId, wanted: list[str]) -> list[str]:
    """The wanted services (none: all) that may be; UNAUTHENTICATED for one that may not."""
    allowed = principal.services(scope, id.dseq, id.gseq, id.oseq)
    if allowed is None:
        return wanted
    for name in wanted:
        principal.require(scope, id.dseq, id.gseq, id.oseq, name)
    return wanted or sorted(allowed)


def _command(socket: Socket) -> list[str]:
    command: list[str] = []
    while len(command) < MAX_ARGUMENTS:
        part = _value(socket, f"cmd{len(command)}")
        if part is None:
            break
        command.append(part)
    if not command:
        raise _bad("cmd0", "a command", None)
    return command
