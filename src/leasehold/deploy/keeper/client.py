"""The provider's side of the keeper: starts it when it is not there, calls it, hears its events.

When the connection is lost (the keeper was killed, or replaced) calls fail with kind UNAVAILABLE,
a new keeper is started, which adopts what still runs, and ``reconnected`` listeners look again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import leasehold
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.core.logs import get_logger
from leasehold.core.service import Service
from leasehold.deploy.keeper import wire

START_SECONDS = 10.0
"""How long a new keeper may take to answer; it takes about 0.1 s."""

PROTOCOL = 1

log = get_logger(__name__)


class KeeperClient(Service):
    """One connection to the keeper of ``folder`` (an absolute path)."""

    def __init__(self, folder: Path, *, clock: Clock | None = None) -> None:
        super().__init__("keeper", clock=clock)
        self.folder = folder
        self.pid = 0
        self.roots = Path()
        """Below it, a directory a container, seen by the keeper and what it starts only."""
        self.on_event: list[Callable[[dict[str, Any]], None]] = []
        self.on_reconnect: list[Callable[[], None]] = []
        self._sock: socket.socket | None = None
        self._next = 0
        self._calls: dict[int, asyncio.Future[tuple[Any, list[int]]]] = {}
        self._lost = asyncio.Event()
        self._retired = False

    async def start(self) -> None:
        await self._connect()
        self.spawn(self._stay_connected(), name="connection")

    async def stop(self) -> None:
        """Leave; the keeper and all it holds go on."""
        self._disconnect()

    async def call(
        self, op: str, *, fds: Sequence[int] = (), **arguments: Any
    ) -> tuple[Any, list[int]]:
        """One request: its answer, and the descriptors that came with it, the caller's to close."""
        if self._sock is None:
            raise unavailable("keeper_away", "the keeper process does not answer", retry_after=1.0)
        self._next += 1
        number = self._next
        future: asyncio.Future[tuple[Any, list[int]]] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        try:
            while True:
                try:
                    wire.send(self._sock, {"n": number, "op": op, **arguments}, list(fds))
                    break
                except BlockingIOError:
                    await self._writable(self._sock)
            return await future
        except OSError as error:
            raise unavailable("keeper_away", f"the keeper does not answer: {error}") from None
        finally:
            self._calls.pop(number, None)

    def check(self) -> None:
        """Raise when the keeper does not answer just now."""
        if self._sock is None:
            raise unavailable("keeper_away", "the keeper process does not answer", retry_after=1.0)

    async def ask(self, op: str, *, fds: Sequence[int] = (), **arguments: Any) -> Any:
        """:meth:`call` for requests answered without descriptors."""
        return (await self.call(op, fds=fds, **arguments))[0]

    async def list(self) -> dict[str, dict[str, Any]]:
        """Everything the keeper keeps, by id."""
        found: dict[str, dict[str, Any]] = {}
        after = ""
        while part := await self.ask("list", after=after):
            found.update((item["id"], item) for item in part)
            after = part[-1]["id"]
        return found

    async def retire(self, *, force: bool = False) -> None:
        """End the keeper, and with ``force`` everything it keeps; this client is done then."""
        loop = asyncio.get_running_loop()
        pidfd = os.pidfd_open(self.pid)
        gone = asyncio.Event()
        loop.add_reader(pidfd, gone.set)
        try:
            self._retired = True
            await self.ask("stop", force=force)
            async with self.clock.timeout(START_SECONDS):
                await gone.wait()
        except LeaseholdError:
            self._retired = False
            raise
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        self.request_stop()

    async def _writable(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_writer(sock, lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
        finally:
            loop.remove_writer(sock)

    async def _connect(self) -> None:
        started: subprocess.Popen[bytes] | None = None
        async with self.clock.timeout(START_SECONDS):
            while True:
                sock = self._try()
                if sock is not None:
                    break
                if started is None or started.poll() is not None:
                    started = launch(self.folder)
                await self.clock.sleep(0.01)
        self._sock = sock
        self._lost.clear()
        asyncio.get_running_loop().add_reader(sock, self._readable, sock)
        hello = await self.ask("hello")
        if hello["version"] != PROTOCOL:
            raise LeaseholdError(
                "keeper_version",
                "the running keeper belongs to another version; start that version, or end it with "
                "that version's `leasehold provider clear`",
                kind=Kind.CONFLICT,
                expected=PROTOCOL,
                got=hello["version"],
            )
        self.pid = hello["pid"]
        self.roots = Path(hello["roots"])

    def _try(self) -> socket.socket | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        # By descriptor: a socket's path may have 107 bytes only.
        try:
            folder = os.open(self.folder, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            sock.close()
            return None
        try:
            sock.connect(f"/proc/self/fd/{folder}/keeper.sock")
            return sock
        except OSError:
            sock.close()
            return None
        finally:
            os.close(folder)

    async def _stay_connected(self) -> None:
        while True:
            await self._lost.wait()
            if self.stopping or self._retired:
                return
            log.warning("keeper.lost", folder=str(self.folder))
            try:
                await self._connect()
            except (TimeoutError, LeaseholdError) as error:
                log.error("keeper.unreachable", error=str(error))
                await self.clock.sleep(1.0)
                self._lost.set()
                continue
            for listener in self.on_reconnect:
                listener()

    def _readable(self, sock: socket.socket) -> None:
        try:
            message, fds = wire.receive(sock)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            message, fds = None, []
        if message is None:
            self._disconnect()
            return
        if "event" in message:
            for listener in self.on_event:
                listener(message)
            return
        future = self._calls.get(message.get("n", -1))
        if future is None or future.done():
            for fd in fds:
                os.close(fd)
        elif "ok" in message:
            future.set_result((message["ok"], fds))
        else:
            future.set_exception(
                LeaseholdError(message["code"], message["error"], kind=Kind.INTERNAL)
            )

    def _disconnect(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        for future in self._calls.values():
            if not future.done():
                future.set_exception(unavailable("keeper_away", "the keeper process has ended"))
        self._lost.set()


def launch(folder: Path) -> subprocess.Popen[bytes]:
    """Start the keeper of ``folder``: isolated, without site packages, in a session of its own."""
    source = str(Path(leasehold.__file__).parent.parent)
    folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    code = (
        "import sys; sys.modules['ssl'] = None; sys.path.insert(0, sys.argv[1]);"
        "from leasehold.deploy.keeper.server import run; run(sys.argv[2])"
    )
    with open(folder / "keeper.log", "ab") as output:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code, source, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env={"PATH": os.environ.get("PATH") or os.defpath, "LANG": "C.UTF-8"},
            start_new_session=True,
        )


def kill_keeper(pid: int) -> None:
    """SIGKILL, for tests and for a keeper that no longer answers; containers go on."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
