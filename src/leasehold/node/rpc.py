"""Calling services: JSON-RPC 2.0 over a Unix socket, one JSON text a line.

A request carries who calls beside the standard members::

    {"jsonrpc": "2.0", "id": 1, "method": "get_weight", "params": ["12D3…"],
     "context": {"caller": "12D3…", "owner": "12D3…", "host": "12D3…", "run": "spell_01J…_7"}}

A call uses a connection of its own, which is closed when the deadline passes: a service that hangs
costs its caller the deadline and nothing else. Replies are bounded in size.

:class:`BuiltinServer` answers the same protocol inside the node, for services that need one of the
node's ports (the connector reads the market this way).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.core.service import Service
from leasehold.node.sockets import listen, short

Function = Callable[..., Awaitable[Any]]


class Context(msgspec.Struct, frozen=True):
    """Who calls: peer ids of the caller, of the service's owner and of this host; the run."""

    caller: str = ""
    owner: str = ""
    host: str = ""
    run: str = ""


class _Reply(msgspec.Struct):
    id: int | str | None = None
    result: Any = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Reply)


async def call(
    path: str,
    method: str,
    params: list[Any] | dict[str, Any],
    context: Context,
    *,
    clock: Clock,
    timeout: float,
    limit: int,
) -> Any:
    """The result of one call; LeaseholdError says which part of it failed.

    ``timeout`` in seconds covers connecting, waiting and reading; ``limit`` bounds the reply.
    """
    request = msgspec.json.encode(
        {"jsonrpc": "2.0", "id": 1, "method": method, "params": params, "context": context}
    )
    if len(request) >= limit:
        raise LeaseholdError(
            "call_too_large",
            f"the arguments of {method} take {len(request)} bytes",
            kind=Kind.TOO_LARGE,
            expected=f"< {limit} bytes",
        )
    try:
        async with clock.timeout(timeout):
            line = await _exchange(path, request + b"\n", limit)
    except TimeoutError:
        raise LeaseholdError(
            "call_timeout",
            f"{method} did not answer within {timeout:g} s",
            kind=Kind.TIMEOUT,
            retry_after=timeout,
        ) from None
    except (OSError, EOFError) as error:
        raise unavailable(
            "service_unreachable", f"{method}: the service does not answer: {error}", got=path
        ) from None
    except ValueError:
        raise LeaseholdError(
            "reply_too_large", f"{method} answered with more than {limit} bytes", kind=Kind.INTERNAL
        ) from None
    return result_of(method, line)


def result_of(method: str, line: bytes) -> Any:
    """The result in a reply, or its error."""
    try:
        reply = _decoder.decode(line)
    except msgspec.MsgspecError as error:
        raise LeaseholdError(
            "bad_reply",
            f"{method} answered something that is no JSON-RPC reply: {error}",
            kind=Kind.INTERNAL,
            got=line[:120].decode(errors="replace"),
        ) from None
    if reply.error is not None:
        said = reply.error if isinstance(reply.error, dict) else {"message": str(reply.error)}
        code = said.get("code")
        kind = Kind.NOT_FOUND if code == -32601 else Kind.INTERNAL
        kind = Kind.INVALID if code == -32602 else kind
        raise LeaseholdError(
            "call_failed", f"{method}: {said.get('message', 'failed')}", kind=kind, got=code
        )
    return reply.result


def check_reply(target: str, value: Any) -> dict[str, Any]:
    """The reply contract: an object with a boolean ``success``, and ``error`` when it is false."""
    if not isinstance(value, dict) or not isinstance(value.get("success"), bool):
        raise LeaseholdError(
            "bad_reply",
            f"{target} answered {str(value)[:200]!r}, which is no object with a boolean `success`",
            kind=Kind.INTERNAL,
            path=target,
            expected='{"success": true|false, "error": "…"}',
            got=str(value)[:200],
        )
    if not value["success"]:
        raise LeaseholdError(
            "call_refused",
            f"{target}: {value.get('error') or 'failed without saying why'}",
            path=target,
        )
    return value


async def _exchange(path: str, request: bytes, limit: int) -> bytes:
    with short(path) as name:
        reader, writer = await asyncio.open_unix_connection(name, limit=limit)
    try:
        writer.write(request)
        await writer.drain()
        line = await reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError("it closed the connection")
        return line
    finally:
        # Not awaited: closing must not outlive a deadline that has passed.
        writer.close()


class BuiltinServer(Service):
    """Functions of the node itself, on a Unix socket of their own like any other service."""

    def __init__(
        self, path: str, functions: Mapping[str, Function], *, limit: int, clock: Clock
    ) -> None:
        super().__init__("builtin service", clock=clock)
        self.path = path
        self.functions = functions
        self.limit = limit

    async def start(self) -> None:
        sock = listen(self.path)
        server = await asyncio.start_unix_server(self._serve, sock=sock, limit=self.limit)
        self.resources.callback(server.close)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, asyncio.CancelledError):
            while line := await reader.readline():
                writer.write(await self._answer(line) + b"\n")
                await writer.drain()
        writer.close()

    async def _answer(self, line: bytes) -> bytes:
        n: Any = None
        try:
            request = msgspec.json.decode(line, type=dict[str, Any])
            n, method = request.get("id"), str(request.get("method"))
            if method == "system.ready":
                return _ok(n, {"success": True, "error": ""})
            if method == "system.functions":
                names = dict.fromkeys(sorted(self.functions), "")
                return _ok(n, {"success": True, "error": "", "functions": names})
            fn = self.functions.get(method)
            if fn is None:
                return _fail(n, -32601, f"no function {method!r}")
            value = await fn(*request.get("params", []))
            return _ok(n, {"success": True, "error": "", **value})
        except msgspec.MsgspecError as error:
            return _fail(n, -32700, str(error))
        except TypeError as error:
            return _fail(n, -32602, str(error))
        except LeaseholdError as error:
            return _ok(n, {"success": False, "error": error.message, "code": error.code})
        except Exception as error:
            return _fail(n, -32603, f"{type(error).__name__}: {error}")


def _ok(n: Any, value: Any) -> bytes:
    return msgspec.json.encode({"jsonrpc": "2.0", "id": n, "result": value})


def _fail(n: Any, code: int, message: str) -> bytes:
    error = {"code": code, "message": message}
    return msgspec.json.encode({"jsonrpc": "2.0", "id": n, "error": error})
