"""A command inside a replica, with pipes or a terminal.

The runtime starts it and leaves; the keeper holds it and says how it ended. With a terminal the
runtime hands us the controlling end over a socket, so that resizing is one call.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import secrets
import signal
import socket
import struct
import termios
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leasehold.core.errors import Kind, LeaseholdError

if TYPE_CHECKING:
    from leasehold.deploy.oci.driver import OciRuntime

STDOUT, STDERR = 1, 2
CHUNK = 64 * 1024


class Exec:
    """One running command. Close it with :meth:`kill`, also after it ended."""

    def __init__(self, runtime: OciRuntime, id: str) -> None:
        self._runtime = runtime
        self._id = id
        self._stdin = -1
        self._outputs: dict[int, int] = {}
        self._terminal = -1
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        runtime.keeper.on_event.append(self._event)

    def _event(self, event: dict[str, Any]) -> None:
        if event["event"] == "exited" and event["id"] == self._id and not self._code.done():
            exit = event["exit"]
            code = exit["code"] if exit["code"] is not None else 128 + (exit["signal"] or 0)
            self._code.set_result(code)

    async def write(self, data: bytes) -> None:
        """To its standard input; waits while nobody takes it."""
        view = memoryview(data)
        while view and self._stdin >= 0:
            try:
                view = view[os.write(self._stdin, view) :]
            except BlockingIOError:
                await _ready(self._stdin, asyncio.get_running_loop().add_writer)
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.EIO):
                    raise
                return

    async def close_input(self) -> None:
        if self._terminal >= 0:
            await self.write(b"\x04")
        elif self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1

    async def resize(self, width: int, height: int) -> None:
        """Characters."""
        if self._terminal >= 0:
            size = struct.pack("HHHH", height, width, 0, 0)
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, size)

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """``(stream, data)`` until both streams have ended."""
        loop = asyncio.get_running_loop()
        while self._outputs:
            ready: asyncio.Future[None] = loop.create_future()

            def wake(ready: asyncio.Future[None] = ready) -> None:
                if not ready.done():
                    ready.set_result(None)

            for fd in self._outputs:
                loop.add_reader(fd, wake)
            try:
                await ready
            finally:
                for fd in self._outputs:
                    loop.remove_reader(fd)
            for fd, stream in list(self._outputs.items()):
                data = _read(fd)
                if data:
                    yield stream, data
                elif data is not None:
                    self._outputs.pop(fd)
                    if fd != self._terminal:
                        os.close(fd)

    async def wait(self) -> int:
        """Its exit code; 128 + signal when it was killed."""
        return await asyncio.shield(self._code)

    async def kill(self) -> None:
        """End it, and let go of everything."""
        if not self._code.done():
            with contextlib.suppress(LeaseholdError):
                await self._runtime.keeper.ask("signal", id=self._id, signal=int(signal.SIGKILL))
        with contextlib.suppress(ValueError):
            self._runtime.keeper.on_event.remove(self._event)
        for fd in {self._stdin, self._terminal, *self._outputs} - {-1}:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._stdin = self._terminal = -1
        self._outputs.clear()


async def start(
    runtime: OciRuntime,
    key: str,
    command: Sequence[str],
    *,
    tty: bool,
    stdin: bool,
) -> Exec:
    """Run ``command`` in the replica ``key``; ``executable_not_found`` when it has no such."""
    if not runtime.program.can_exec:
        raise LeaseholdError(
            "exec_unsupported",
            "runc cannot run commands in a container with a user namespace here; install crun",
            kind=Kind.UNSUPPORTED,
        )
    home = runtime.home(key)
    try:
        process = json.loads((home / "config.json").read_text())["process"]
    except FileNotFoundError:
        raise LeaseholdError(
            "replica_not_running", f"{key} is not running", kind=Kind.NOT_FOUND
        ) from None
    process.update(args=list(command), terminal=tty)
    if tty:
        process["env"] = [e for e in process["env"] if not e.startswith("TERM=")] + ["TERM=xterm"]
    name = secrets.token_hex(8)
    spec, pid_file = home / f"exec-{name}.json", home / f"exec-{name}.pid"
    spec.write_text(json.dumps(process))
    running = Exec(runtime, f"{key}/exec/{name}")
    arguments = ["exec", "--detach", "--process", str(spec), "--pid-file", str(pid_file)]
    try:
        if tty:
            await _start_on_terminal(runtime, running, key, arguments, pid_file)
        else:
            await _start_on_pipes(runtime, running, key, arguments, pid_file, stdin=stdin)
    except LeaseholdError as error:
        await running.kill()
        if "not found" in error.message or "No such file" in error.message:
            raise LeaseholdError(
                "executable_not_found", error.message, kind=Kind.INVALID, got=command[0]
            ) from None
        raise
    except BaseException:
        await running.kill()
        raise
    finally:
        spec.unlink(missing_ok=True)
    return running


async def _start_on_pipes(
    runtime: OciRuntime,
    running: Exec,
    key: str,
    arguments: list[str],
    pid_file: Path,
    *,
    stdin: bool,
) -> None:
    theirs: list[int] = []
    try:
        if stdin:
            read, write = os.pipe2(os.O_CLOEXEC)
            theirs.append(read)
            running._stdin = write
            os.set_blocking(write, False)
        else:
            theirs.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        for stream in (STDOUT, STDERR):
            read, write = os.pipe2(os.O_CLOEXEC)
            theirs.append(write)
            running._outputs[read] = stream
            os.set_blocking(read, False)
        # The container's root owns neither end: give it the right to open them again by name.
        for fd in theirs[1 if not stdin else 0 :]:
            os.fchmod(fd, 0o666)
        await runtime.keeper.ask(
            "exec",
            id=running._id,
            run=runtime.command(key, *arguments, key),
            pid_file=str(pid_file),
            runtime_log=str(runtime.home(key) / "runtime.log"),
            fds=theirs,
        )
    finally:
        for fd in theirs:
            os.close(fd)


async def _start_on_terminal(
    runtime: OciRuntime, running: Exec, key: str, arguments: list[str], pid_file: Path
) -> None:
    loop = asyncio.get_running_loop()
    # A short path: it has to fit into a socket address, and the runtime connects to it by name.
    path = str(runtime.keeper.roots / f"{secrets.token_hex(8)}.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        try:
            os.chmod(path, 0o600)
            listener.listen(1)
            listener.setblocking(False)
            accepting = asyncio.ensure_future(loop.sock_accept(listener))
            try:
                await runtime.keeper.ask(
                    "exec",
                    id=running._id,
                    run=runtime.command(key, *arguments, "--console-socket", path, key),
                    pid_file=str(pid_file),
                    runtime_log=str(runtime.home(key) / "runtime.log"),
                )
                connection, _ = await accepting
            finally:
                accepting.cancel()
        finally:
            os.unlink(path)
    with connection:
        connection.setblocking(True)
        _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
    (fd,) = fds
    os.set_blocking(fd, False)
    running._terminal = running._stdin = fd
    running._outputs[fd] = STDOUT


def _read(fd: int) -> bytes | None:
    """What is there; empty at the end, None when it was a false alarm."""
    try:
        return os.read(fd, CHUNK)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno == errno.EIO:  # A terminal whose other end is closed.
            return b""
        raise


async def _ready(fd: int, add: Callable[..., None]) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    add(fd, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_writer(fd)
