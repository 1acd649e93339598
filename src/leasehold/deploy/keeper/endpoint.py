"""The keeper's socket: who is connected, requests as tasks, answers and events.

A provider that takes nothing is gone or stuck: it is let go of, and lists everything when it comes
back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from leasehold.deploy.keeper import rootfs, wire
from leasehold.deploy.keeper.host import bind_short

Message = dict[str, Any]
Answer = Callable[[Message, list[int], list[int]], Awaitable[Any]]
"""``answer(message, fds, out)``: ``fds`` came with the message, what is put into ``out`` goes with
the answer."""


class Refused(Exception):
    """An answer that is an error; ``code`` is stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Endpoint:
    """``folder`` holds the socket."""

    def __init__(self, folder: str, answer: Answer) -> None:
        self.folder = folder
        self.answer = answer
        self.clients: set[socket.socket] = set()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, until: asyncio.Event) -> None:
        path = f"{self.folder}/keeper.sock"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.setblocking(False)
            bind_short(listener, self.folder)
            os.chmod(path, 0o600)
            listener.listen(64)
            self._loop.add_reader(listener, self._accept, listener)
            await until.wait()
            self._loop.remove_reader(listener)
        os.unlink(path)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            client, _ = listener.accept()
            client.setblocking(False)
            self.clients.add(client)
            self._loop.add_reader(client, self._readable, client)

    def _readable(self, client: socket.socket) -> None:
        try:
            message, fds = wire.receive(client)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            message, fds = None, []
        if message is None:
            self._forget(client)
            return
        task = self._loop.create_task(self._handle(client, message, fds))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _forget(self, client: socket.socket) -> None:
        if client in self.clients:
            self.clients.discard(client)
            self._loop.remove_reader(client)
            client.close()

    async def _handle(self, client: socket.socket, message: Message, fds: list[int]) -> None:
        number = message.get("n")
        out: list[int] = []
        try:
            reply: Message = {"n": number, "ok": await self.answer(message, fds, out)}
        except Refused as error:
            reply = {"n": number, "error": str(error), "code": error.code}
        except rootfs.Unusable as error:
            reply = {"n": number, "error": str(error), "code": "image_unusable"}
        except Exception as error:
            traceback.print_exc()
            reply = {"n": number, "error": f"{type(error).__name__}: {error}", "code": "failed"}
        finally:
            for fd in fds:
                os.close(fd)
        self._send(client, reply, out)

    def _send(
        self, client: socket.socket, message: Message, fds: list[int] | tuple[int, ...] = ()
    ) -> None:
        if client not in self.clients:
            return
        try:
            wire.send(client, message, fds)
        except OSError:
            self._forget(client)

    def tell(self, event: Message) -> None:
        """To every connected provider."""
        for client in list(self.clients):
            self._send(client, event)
