"""Output of a process: from a FIFO into rotated files, with a time on each line.

The process writes into a FIFO that it holds open for reading too, so it never sees a broken pipe:
while nobody reads it waits, and a keeper that starts again goes on where the last one stopped. A
line is kept as ``TIME stdout F text`` (``P`` when it was cut), the format Kubernetes uses. Reading
is limited to a rate, so a program that floods its log slows itself down and nobody else.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from leasehold.deploy.keeper import linux

CHUNK = 64 * 1024
"""Bytes read at once: the size of a pipe."""

LINE_LIMIT = 16 * 1024
"""Longer lines are stored in parts of this size, as container runtimes do."""


class LogFile:
    """``path`` is written, ``path.1`` is the one before it, up to ``files`` in all."""

    def __init__(self, path: str, *, limit: int, files: int) -> None:
        self.path = path
        self.limit = limit
        self.files = files
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self.fd = os.open(self.path, flags, 0o600)
        self.size = os.fstat(self.fd).st_size

    def write(self, data: bytes) -> None:
        if self.size and self.size + len(data) > self.limit:
            self._rotate()
        self.size += os.write(self.fd, data)

    def _rotate(self) -> None:
        """``path`` is there at every moment: a reader never finds nothing."""
        full = f"{self.path}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        fresh = os.open(full, flags, 0o600)
        linux.exchange(full, self.path)
        os.close(self.fd)
        self.fd, self.size = fresh, 0
        for number in range(self.files - 1, 1, -1):
            newer = f"{self.path}.{number - 1}"
            if os.path.exists(newer):
                os.replace(newer, f"{self.path}.{number}")
        if self.files == 1:
            os.unlink(full)
        else:
            os.replace(full, f"{self.path}.1")

    def close(self) -> None:
        os.close(self.fd)


class Pump:
    """Moves what comes out of one FIFO into a log file, at most ``rate`` bytes a second."""

    def __init__(self, fifo: str, stream: str, log: LogFile, *, rate: int) -> None:
        self.fifo = fifo
        self.stream = stream.encode()
        self.log = log
        self.rate = rate
        self._allowance = float(rate)
        self._refilled = time.monotonic()
        self._rest = b""
        self._resume: asyncio.TimerHandle | None = None
        # Also a writer: without one the FIFO would report its end, over and over.
        self.fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.fd, self._readable)

    def _readable(self) -> None:
        now = time.monotonic()
        self._allowance = min(self.rate, self._allowance + (now - self._refilled) * self.rate)
        self._refilled = now
        if self._allowance < 0:
            self._loop.remove_reader(self.fd)
            self._resume = self._loop.call_later(-self._allowance / self.rate + 0.01, self._again)
            return
        try:
            data = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return
        self._allowance -= len(data)
        self._take(data)

    def _again(self) -> None:
        self._resume = None
        self._loop.add_reader(self.fd, self._readable)

    def _take(self, data: bytes) -> None:
        whole, newline, rest = (self._rest + data).rpartition(b"\n")
        if newline:
            self._put(whole, b"F")
        while len(rest) >= LINE_LIMIT:
            self._put(rest[:LINE_LIMIT], b"P")
            rest = rest[LINE_LIMIT:]
        self._rest = rest

    def _put(self, lines: bytes, tag: bytes) -> None:
        now = time.time()
        head = (
            time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)).encode()
            + b".%06dZ " % (now % 1 * 1e6)
            + self.stream
            + b" "
            + tag
            + b" "
        )
        try:
            self.log.write(head + lines.replace(b"\n", b"\n" + head) + b"\n")
        except OSError:
            # A full disk must stop neither the container nor the keeper; the lines are lost.
            pass

    def finish(self) -> None:
        """The process ended: take what is left, then close."""
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self.fd)
        while True:
            try:
                data = os.read(self.fd, CHUNK)
            except BlockingIOError:
                break
            self._take(data)
        if self._rest:
            self._put(self._rest, b"F")
            self._rest = b""
        os.close(self.fd)


class Output:
    """Both streams of one process and the file they end up in."""

    def __init__(self, folder: str, spec: dict[str, Any]) -> None:
        self.folder = folder
        self.log = LogFile(
            spec["path"], limit=spec.get("bytes", 10 << 20), files=spec.get("files", 3)
        )
        rate = spec.get("rate", 32 << 20)
        self._pumps = []
        for stream in ("stdout", "stderr"):
            fifo = f"{folder}/{stream}"
            if not os.path.exists(fifo):
                os.makedirs(folder, mode=0o700, exist_ok=True)
                os.mkfifo(fifo, 0o600)
            self._pumps.append(Pump(fifo, stream, self.log, rate=rate))

    def writers(self) -> tuple[int, int]:
        """Descriptors for the process: its stdout and its stderr. The caller closes them."""
        flags = os.O_RDWR | os.O_CLOEXEC
        return os.open(f"{self.folder}/stdout", flags), os.open(f"{self.folder}/stderr", flags)

    def finish(self) -> None:
        for pump in self._pumps:
            pump.finish()
        self.log.close()
        for stream in ("stdout", "stderr"):
            os.unlink(f"{self.folder}/{stream}")
        os.rmdir(self.folder)
