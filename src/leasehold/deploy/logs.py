"""Reading replicas' logs: the last lines, all of them, or as they come.

The keeper writes ``<service>/<number>.log`` below the lease's folder and rotates it. A follower is
woken by the kernel (inotify) when something was written, so it neither polls nor misses a rotation:
it reads the old file to its end before it goes on with the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import io
import itertools
import os
import shutil
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from leasehold.core.errors import not_found

CHUNK = 256 * 1024
BATCH = 10_000
"""About as many lines are read before somebody gets them."""

LOOKS = 20
"""Times a follower looks for its place among files that are being renamed."""

TAIL_LIMIT = 100_000
"""Most lines a reader may ask for at the end of each log."""

_IN_MODIFY, _IN_CREATE, _IN_MOVED_TO = 0x2, 0x100, 0x80
_libc = ctypes.CDLL(None, use_errno=True)


class Line(msgspec.Struct, frozen=True):
    """``at`` is RFC 3339 text; ``stream`` stdout or stderr; ``partial`` when it was cut."""

    service: str
    replica: int
    at: str
    stream: str
    text: str
    partial: bool = False


Lines = AsyncIterator[Line]


class _Watch:
    """Wakes when anything in the folders was written or made."""

    def __init__(self) -> None:
        self.fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self.changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(self.fd, self._readable)

    def add(self, folder: Path) -> None:
        mask = _IN_MODIFY | _IN_CREATE | _IN_MOVED_TO
        _libc.inotify_add_watch(self.fd, os.fsencode(folder), mask)

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 65536)
        self.changed.set()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.fd)
        os.close(self.fd)


class _Reader:
    """One replica's log, from some point on, across rotations."""

    def __init__(self, path: Path, service: str) -> None:
        self.path = path
        self.service = service
        self.replica = int(path.stem)
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by close)
        self._rest = b""
        self.behind = False
        """There is more than the last call of ``more`` gave."""

    def start(self, tail: int | None) -> list[Line]:
        """What there is already, rotated files included: all of it, or the last lines."""
        mine = os.fstat(self._file.fileno()).st_ino
        older = list(itertools.takewhile(lambda found: found[0] != mine, self._files()))
        if tail is not None:
            self._file.seek(_last(self._file, tail))
        lines = self.more()
        while self.behind:
            lines += self.more()
        for _, path in reversed(older):
            if tail is not None and len(lines) >= tail:
                break
            with contextlib.suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
                if tail is not None:
                    file.seek(_last(file, tail - len(lines)))
                lines = self._parse(file.read().splitlines()) + lines
        return lines if tail is None else lines[max(0, len(lines) - tail) :]

    def more(self) -> list[Line]:
        """What was written since the last call; with ``behind`` not all of it."""
        found: list[Line] = []
        while len(found) < BATCH:
            if data := self._file.read(CHUNK):
                found += self._take(data)
                continue
            following = self._following()
            if following is None:
                self.behind = False
                return found
            # Nothing is written to a file once there is a next one: now its end is its end.
            while data := self._file.read(CHUNK):
                found += self._take(data)
            self._file.close()
            self._file, self._rest = following, b""
        self.behind = True
        return found

    def _take(self, data: bytes) -> list[Line]:
        *whole, self._rest = (self._rest + data).split(b"\n")
        return self._parse(whole)

    def _following(self) -> io.FileIO | None:
        """The file after the one we read, opened; None when ours is the newest.

        While files are being renamed ours may not be found: then we look again. One that is gone
        for good was rotated out before we came to its end: we go on with the oldest.
        """
        mine = os.fstat(self._file.fileno()).st_ino
        for look in range(LOOKS):
            files = self._files()
            inodes = [inode for inode, _ in files]
            if mine in inodes:
                at = inodes.index(mine) + 1
            elif look == LOOKS - 1:
                at = 0
            else:
                continue
            if at == len(files):
                return None
            inode, path = files[at]
            with contextlib.suppress(FileNotFoundError):
                file = open(path, "rb", buffering=0)  # noqa: SIM115 (ours until closed)
                if os.fstat(file.fileno()).st_ino == inode:
                    return file
                file.close()
        return None

    def _files(self) -> list[tuple[int, Path]]:
        """Inode and path of each file of this log, oldest first."""
        name = self.path.name
        numbers = (p.suffix[1:] for p in self.path.parent.glob(f"{name}.*"))
        rotated = sorted((int(n) for n in numbers if n.isdigit()), reverse=True)
        found = []
        # Being rotated the newest but one is called so for a moment.
        for path in (*(f"{name}.{n}" for n in rotated), f"{name}.new", name):
            with contextlib.suppress(FileNotFoundError):
                found.append((os.stat(self.path.parent / path).st_ino, self.path.parent / path))
        return found

    def _parse(self, lines: list[bytes]) -> list[Line]:
        found = []
        for line in lines:
            parts = line.split(b" ", 3)
            if len(parts) == 4:
                at, stream, tag, text = parts
                found.append(
                    Line(
                        self.service,
                        self.replica,
                        at.decode("ascii", "replace"),
                        stream.decode("ascii", "replace"),
                        text.decode(errors="replace"),
                        tag == b"P",
                    )
                )
        return found

    def close(self) -> None:
        self._file.close()


def _last(file: io.FileIO, lines: int) -> int:
    """Where the last ``lines`` lines of a file begin, found from its end."""
    at = file.seek(0, os.SEEK_END)
    missing = lines + 1  # the newline before the first of them
    while at > 0 and lines > 0:
        start = max(0, at - CHUNK)
        file.seek(start)
        piece = file.read(at - start)
        found = piece.count(b"\n")
        if found >= missing:
            for _ in range(missing):
                piece = piece[: piece.rindex(b"\n")]
            return start + len(piece) + 1
        missing -= found
        at = start
    return at


async def read(
    folder: Path, service: str | None, *, tail: int | None, ended: asyncio.Event | None = None
) -> Lines:
    """See :meth:`leasehold.deploy.service.DeployService.logs`; follows until ``ended`` is set,
    without it what is there now is all."""
    if ended is None and not folder.is_dir():
        raise not_found("log", service or folder.name)
    if tail is not None:
        tail = max(0, min(tail, TAIL_LIMIT))
    readers: dict[Path, _Reader] = {}
    watch = _Watch() if ended is not None else None
    try:
        first = True
        while True:
            if watch is not None:
                watch.changed.clear()
                watch.add(folder if folder.is_dir() else folder.parent)
            lines: list[Line] = []
            for path in _files(folder, service):
                if watch is not None:
                    watch.add(path.parent)
                if path not in readers:
                    try:
                        reader = readers[path] = _Reader(path, path.parent.name)
                    except FileNotFoundError:
                        continue  # Being rotated just now; the new file wakes us.
                    lines += await asyncio.to_thread(reader.start, tail if first else None)
                else:
                    lines += readers[path].more()
            lines.sort(key=lambda line: line.at)
            for line in lines:
                yield line
            first = False
            if watch is None or ended is None:
                return
            if any(reader.behind for reader in readers.values()):
                continue
            if ended.is_set() and not lines:
                return
            await _either(watch.changed, ended)
    finally:
        for reader in readers.values():
            reader.close()
        if watch is not None:
            watch.close()


def search(folder: Path, service: str | None, text: str, limit: int) -> list[Line]:
    """The newest ``limit`` lines that contain ``text``, upper and lower case alike, oldest first.

    Reads files a piece at a time: memory does not grow with the log. Blocking; run it in a thread.
    """
    needle = text.lower().encode()
    found: list[Line] = []
    for path in _files(folder, service):
        newest: deque[bytes] = deque(maxlen=limit)
        rotated = (p for p in path.parent.glob(f"{path.name}.*") if p.suffix[1:].isdigit())
        for file in (*sorted(rotated, key=lambda p: -int(p.suffix[1:])), path):
            with contextlib.suppress(FileNotFoundError), file.open("rb") as lines:
                newest.extend(line for line in lines if needle in line.split(b" ", 3)[-1].lower())
        reader = _Reader(path, path.parent.name)
        try:
            found += reader._parse([line.rstrip(b"\n") for line in newest])
        finally:
            reader.close()
    found.sort(key=lambda line: line.at)
    return found[-limit:]


def expire(folder: Path, alive: set[str], before: float) -> list[str]:
    """Remove the logs of leases not in ``alive`` that were last written before ``before``."""
    removed = []
    for lease in folder.iterdir() if folder.is_dir() else ():
        if lease.name in alive or not lease.is_dir():
            continue
        written = [path.stat().st_mtime for path in (lease, *lease.rglob("*"))]
        if max(written) < before:
            shutil.rmtree(lease, ignore_errors=True)
            removed.append(lease.name)
    return removed


async def _either(changed: asyncio.Event, ended: asyncio.Event) -> None:
    if ended.is_set():
        return  # One more look, then the end.
    waiting = {asyncio.ensure_future(event.wait()) for event in (changed, ended)}
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


def _files(folder: Path, service: str | None) -> list[Path]:
    if not folder.is_dir():
        return []
    names = [service] if service else sorted(p.name for p in folder.iterdir() if p.is_dir())
    found = []
    for name in names:
        if "/" in name or name.startswith("."):
            continue
        found += [p for p in sorted((folder / name).glob("*.log")) if p.stem.isdigit()]
    return found
