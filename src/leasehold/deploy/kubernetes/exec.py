"""A command inside a replica on the cluster, over one websocket to the API server.

The first byte of a frame says which channel it is of: 0 to 2 are the standard streams, 3 tells how
it ended, 4 resizes the terminal, and 255 closes a channel (version 5 of the protocol).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from httpx2.websockets import HTTPXWSException

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.deploy.kubernetes.api import Api, unreachable

STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255

QUEUE = 64
"""Frames that wait for a slow reader; the socket waits with them."""

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class ClusterExec:
    """One running command. Close it with :meth:`kill`, also after it ended."""

    def __init__(self, tty: bool) -> None:
        self._tty = tty
        self._socket: Any = None
        self._pump: asyncio.Task[None] | None = None
        self._frames: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(QUEUE)
        loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = loop.create_future()
        self._code: asyncio.Future[int] = loop.create_future()

    async def write(self, data: bytes) -> None:
        """To its standard input."""
        await self._send(bytes((STDIN,)) + data)

    async def close_input(self) -> None:
        if self._tty:
            await self.write(b"\x04")
        elif self._socket is not None and self._socket.subprotocol == "v5.channel.k8s.io":
            await self._send(bytes((CLOSE, STDIN)))

    async def resize(self, width: int, height: int) -> None:
        """Characters."""
        if self._tty:
            size = json.dumps({"Width": width, "Height": height}).encode()
            await self._send(bytes((RESIZE,)) + size)

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """``(stream, data)`` until both streams have ended."""
        while (frame := await self._frames.get()) is not None:
            yield frame
        self._frames.put_nowait(None)

    async def wait(self) -> int:
        """Its exit code; 128 + signal when it was killed."""
        return await asyncio.shield(self._code)

    async def kill(self) -> None:
        """Let go of it: the API server ends what nobody listens to."""
        pump, self._pump = self._pump, None
        if pump is not None:
            pump.cancel()
            await asyncio.wait({pump})
        for future in (self._opened, self._code):
            if future.done() and not future.cancelled():
                future.exception()
            else:
                future.cancel()

    async def _send(self, frame: bytes) -> None:
        if self._socket is None or self._code.done():
            return
        try:
            await self._socket.send_bytes(frame)
        except HTTPXWSException:
            return  # It has ended: the pump says how.

    async def run(self, api: Api, namespace: str, pod: str, command: Sequence[str], stdin: bool
                  ) -> None:  # fmt: skip
        """Hold the socket until the command has ended."""
        try:
            async with api.exec(
                namespace, pod, command, tty=self._tty, stdin=stdin
            ) as self._socket:
                self._opened.set_result(None)
                while not self._code.done():
                    frame = await self._socket.receive_bytes()
                    await self._take(frame[0], frame[1:])
        except asyncio.CancelledError:
            while not self._frames.empty():
                self._frames.get_nowait()
            self._frames.put_nowait(None)
            raise
        except BaseException as error:
            self._fail(_first(error))
        self._fail(unreachable("the connection of the command has ended"))
        await self._frames.put(None)

    async def _take(self, channel: int, data: bytes) -> None:
        if channel in (STDOUT, STDERR):
            if data:
                await self._frames.put((channel, data))
        elif channel == ERROR:
            status = json.loads(data)
            code = exit_code(status)
            if code is None:
                raise LeaseholdError(
                    "executable_not_found"
                    if "not found" in status.get("message", "")
                    or "no such file" in status.get("message", "")
                    else "exec_failed",
                    status.get("message") or "the command could not be run",
                    kind=Kind.INVALID,
                )
            self._code.set_result(code)

    def _fail(self, error: BaseException) -> None:
        for future in (self._opened, self._code):
            if not future.done():
                future.set_exception(error)
                future.exception()  # Nobody has to ask.


async def start(
    api: Api,
    spawn: Spawn,
    namespace: str,
    pod: str,
    command: Sequence[str],
    *,
    tty: bool,
    stdin: bool,
) -> ClusterExec:
    """Run ``command`` in ``pod``."""
    found = ClusterExec(tty)
    found._pump = spawn(found.run(api, namespace, pod, command, stdin))
    try:
        await asyncio.shield(found._opened)
    except BaseException:
        await found.kill()
        raise
    return found


def exit_code(status: dict[str, Any]) -> int | None:
    """Of a status the error channel ends with; None when the command was never run."""
    if status.get("status") == "Success":
        return 0
    if status.get("reason") != "NonZeroExitCode":
        return None
    causes = (status.get("details") or {}).get("causes") or ()
    return next((int(c["message"]) for c in causes if c.get("reason") == "ExitCode"), 1)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, (HTTPXWSException, OSError)):
        return unreachable(error)
    return error
