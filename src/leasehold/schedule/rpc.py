"""JSON-RPC over a websocket that comes back after it broke.

One connection per address, opened by the first call. When it breaks, everything that waits for an
answer fails at once with ``connection_closed``; the next call opens it again, but not before a
pause that grows while opening fails. A late answer finds nobody waiting and is dropped.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import msgspec
import websockets
from websockets.asyncio.client import ClientConnection, connect

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.core.logs import get_logger

PAUSES = (1.0, 1.0, 1.0, 2.0, 3.0, 4.0, 6.0, 10.0)
"""Seconds between attempts to open; the last one repeats. An open connection starts anew."""

OPEN_TIMEOUT = 10.0
MAX_PENDING = 1000
MAX_MESSAGE = 16 << 20

log = get_logger(__name__)


class _Error(msgspec.Struct):
    code: int = 0
    message: str = ""


class _Answer(msgspec.Struct):
    id: int | None = None
    result: Any = None
    error: _Error | None = None


_answers = msgspec.json.Decoder(_Answer)


class RpcClient:
    """``address`` is ``host:port`` or a ``ws://`` URL. Close it with :meth:`close`."""

    def __init__(self, address: str, clock: Clock) -> None:
        self.url = address if "://" in address else f"ws://{address}/ws"
        self.clock = clock
        self._ids = itertools.count()
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._failures = 0
        self._not_before = 0.0

    async def call(self, method: str, *params: Any, timeout: float) -> Any:
        """The result of a method; LeaseholdError with its words, or why there is no answer."""
        if len(self._pending) >= MAX_PENDING:
            raise unavailable("rpc_busy", f"{MAX_PENDING} calls to {self.url} wait already")
        id_ = next(self._ids)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            async with self.clock.timeout(timeout):
                socket = await self._connected()
                self._pending[id_] = answer
                body = {"jsonrpc": "2.0", "id": id_, "method": method, "params": params}
                await socket.send(msgspec.json.encode(body).decode())
                return await answer
        except TimeoutError:
            raise LeaseholdError(
                "rpc_timeout",
                f"{self.url} did not answer {method} within {timeout:g} s",
                kind=Kind.TIMEOUT,
                got=self.url,
            ) from None
        except (OSError, websockets.WebSocketException) as error:
            raise self._closed(str(error)) from None
        finally:
            self._pending.pop(id_, None)

    async def _connected(self) -> ClientConnection:
        async with self._opening:
            if self._socket is not None:
                return self._socket
            wait = self._not_before - self.clock.monotonic()
            if wait > 0:
                raise unavailable(
                    "rpc_unreachable", f"{self.url} could not be reached just now", retry_after=wait
                )
            try:
                socket = await connect(
                    self.url, open_timeout=OPEN_TIMEOUT, max_size=MAX_MESSAGE, close_timeout=1.0
                )
            except (OSError, TimeoutError, websockets.WebSocketException) as error:
                pause = PAUSES[min(self._failures, len(PAUSES) - 1)]
                self._failures += 1
                self._not_before = self.clock.monotonic() + pause
                raise unavailable(
                    "rpc_unreachable", f"{self.url} cannot be reached: {error}", retry_after=pause
                ) from None
            self._failures = 0
            self._socket = socket
            # Owned by this object: it ends with the socket, which close() closes.
            self._reader = asyncio.create_task(self._read(socket))
            return socket

    async def _read(self, socket: ClientConnection) -> None:
        try:
            async for message in socket:
                try:
                    answer = _answers.decode(message)
                except msgspec.MsgspecError:
                    log.warning("rpc.bad_answer", url=self.url)
                    continue
                waiting = self._pending.get(-1 if answer.id is None else answer.id)
                if waiting is None or waiting.done():
                    continue
                if answer.error is None:
                    waiting.set_result(answer.result)
                else:
                    waiting.set_exception(
                        LeaseholdError(
                            "rpc_failed",
                            answer.error.message,
                            kind=Kind.UNAVAILABLE,
                            got=answer.error.code,
                        )
                    )
        except (OSError, websockets.WebSocketException) as error:
            log.info("rpc.broke", url=self.url, error=str(error))
        finally:
            if self._socket is socket:
                self._socket = None
            for waiting in self._pending.values():
                if not waiting.done():
                    waiting.set_exception(self._closed("connection closed"))

    def _closed(self, why: str) -> LeaseholdError:
        return unavailable("connection_closed", f"{self.url}: {why}", got=self.url)

    async def close(self) -> None:
        """End the connection; what waits fails."""
        socket, reader = self._socket, self._reader
        if socket is not None:
            await socket.close()
        if reader is not None:
            await asyncio.wait({reader})
