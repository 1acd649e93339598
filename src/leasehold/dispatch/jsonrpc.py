"""JSON-RPC 2.0 over one websocket, server side.

Each request runs on its own, a bounded number at a time; answers go out as they come. When the
connection closes, what still runs for it is cancelled. Nothing a peer sends ends more than its own
connection: bad JSON, a wrong version, unknown methods and parameters are answers with the codes
the original used (-32700, -32600, -32601, -32602; 0 for an application's own error).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger

CONCURRENT = 32
"""Requests of one connection that run at the same time; more wait in the socket."""

Method = Callable[[list[Any]], Awaitable[Any]]

log = get_logger(__name__)


class RpcRequest(msgspec.Struct):
    method: str
    id: int | str | None = None
    jsonrpc: str = ""
    params: list[Any] | dict[str, Any] | None = None


class RpcError(msgspec.Struct):
    code: int
    message: str
    data: Any = None


async def serve(
    methods: Mapping[str, Method],
    receive: Callable[[], Awaitable[str | bytes | None]],
    send: Callable[[bytes], Awaitable[None]],
) -> None:
    """Answer requests until ``receive`` returns None. ``send`` gets one JSON text at a time."""
    slots = asyncio.Semaphore(CONCURRENT)
    writing = asyncio.Lock()

    async def answer(message: dict[str, Any]) -> None:
        async with writing:
            await send(msgspec.json.encode(message))

    async def run(request: RpcRequest) -> None:
        try:
            message = await respond(methods, request)
            await answer(message)
        finally:
            slots.release()

    async with asyncio.TaskGroup() as group:
        running: set[asyncio.Task[None]] = set()
        while (text := await receive()) is not None:
            try:
                request = msgspec.json.decode(text, type=RpcRequest)
            except msgspec.ValidationError as error:
                await answer(failure(None, -32600, f"not a request: {error}"))
                continue
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                await answer(failure(None, -32700, f"not JSON: {error}"))
                continue
            await slots.acquire()
            task = group.create_task(run(request))
            running.add(task)
            task.add_done_callback(running.discard)
        for task in running:
            task.cancel()


async def respond(methods: Mapping[str, Method], request: RpcRequest) -> dict[str, Any]:
    """The answer to one request; never raises for what the request says."""
    if request.jsonrpc != "2.0":
        return failure(request.id, -32700, "jsonrpc must be 2.0")
    method = methods.get(request.method)
    if method is None:
        known = ", ".join(sorted(methods))
        return failure(request.id, -32601, f"no method {request.method!r}; there are {known}")
    params = request.params if isinstance(request.params, list) else [request.params]
    try:
        result = await method([p for p in params if p is not None])
    except LeaseholdError as error:
        return failure(request.id, 0, error.message, error.to_dict())
    except (msgspec.ValidationError, IndexError, KeyError, TypeError, ValueError) as error:
        return failure(request.id, -32602, f"bad parameters of {request.method}: {error}")
    except Exception as error:
        log.exception("rpc.failed", method=request.method)
        return failure(request.id, -32603, f"internal error: {type(error).__name__}")
    return {"id": request.id, "jsonrpc": "2.0", "result": msgspec.to_builtins(result)}


def failure(id: int | str | None, code: int, message: str, data: Any = None) -> dict[str, Any]:
    error = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return {"id": id, "jsonrpc": "2.0", "error": error}
