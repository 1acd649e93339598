"""Content on its way in: a file nobody can see, hashed as its prefix grows.

Bytes may arrive in any order (several holders at once) and may be overwritten until the prefix
covers them. ``advance`` moves the prefix: from there on bytes are hashed, may be passed on to
others, and are never written again. ``commit`` compares the hash of everything with the digest and
hands the file to its store; whatever happens before that leaves no trace after a restart.

Beside the whole, every 4 MiB chunk is hashed: those digests tell receivers *which* bytes of
*which* holder were bad, long before the end.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.images.ports import DigestMismatch, StoreUnavailable
from leasehold.model.digest import Digest

CHUNK = 4 * 1024 * 1024
"""Bytes of a chunk: small enough to refetch, large enough that its digest is 0.001 % overhead."""

BLOCK = 1024 * 1024
"""Bytes hashed or read at once; 0.7 ms of sha256."""

Adopt = Callable[[Path, Digest, int], Awaitable[None]]


class ChunkHasher:
    """The digests of consecutive chunks of a stream."""

    def __init__(self) -> None:
        self.digests: list[str] = []
        self._hash = hashlib.sha256()
        self._filled = 0

    def update(self, data: memoryview) -> None:
        while data:
            piece = data[: CHUNK - self._filled]
            self._hash.update(piece)
            self._filled += len(piece)
            data = data[len(piece) :]
            if self._filled == CHUNK:
                self._close()

    def append(self, digest: str) -> None:
        """A whole chunk whose digest is known; only between two chunks."""
        assert not self._filled
        self.digests.append(digest)

    def finish(self) -> None:
        """The last, shorter chunk."""
        if self._filled:
            self._close()

    def _close(self) -> None:
        self.digests.append(self._hash.hexdigest())
        self._hash = hashlib.sha256()
        self._filled = 0


class Staged:
    """A ``Writer`` on a file; by ``adopt(path, digest, size)`` its store takes the file over."""

    def __init__(self, path: Path, digest: Digest, adopt: Adopt, *, fsync: bool = True) -> None:
        self.path = path
        self.digest = digest
        self.prefix = 0
        self._adopt = adopt
        self._fsync = fsync
        self._hash = hashlib.sha256()
        self._chunks = ChunkHasher()
        self._lock = asyncio.Lock()
        self._done = False
        with disk_errors():
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    @property
    def chunks(self) -> list[str]:
        """Hex sha256 of each complete chunk of the prefix (after commit also of the last)."""
        return self._chunks.digests

    async def write(self, offset: int, data: bytes) -> None:
        """Keep ``data`` at ``offset``; bytes that continue the prefix advance it at once."""
        async with self._lock:
            await self._in_thread(self._write, offset, data)

    async def put(self, offset: int, data: bytes | bytearray) -> None:
        """Keep ``data`` beyond the prefix without advancing it; what is hashed stays as it is."""
        if offset < self.prefix:
            data, offset = data[self.prefix - offset :], self.prefix
        await self._in_thread(self._put, offset, data)

    async def advance(self, end: int, known: Mapping[int, str] | None = None) -> None:
        """Bytes up to ``end`` are here: hash them.

        ``known`` are digests of whole chunks by their number, taken as the bytes came: those are
        not hashed a second time for it.
        """
        async with self._lock:
            if end > self.prefix:
                await self._in_thread(self._advance, end, known or {})

    async def matches(self) -> bool:
        """Whether what is here so far is exactly the digest's content."""
        async with self._lock:
            return self._hash.hexdigest() == self.digest.hex

    async def restart(self) -> None:
        """Forget everything received; somebody sent bytes of something else."""
        async with self._lock:
            self.prefix = 0
            self._hash = hashlib.sha256()
            self._chunks = ChunkHasher()
            await self._in_thread(os.ftruncate, self._fd, 0)

    async def read(self, offset: int, length: int) -> bytes:
        """Bytes of the prefix."""
        length = min(length, self.prefix - offset)
        if length <= 0:
            return b""
        return await read_at(self._fd, offset, length)

    async def commit(self) -> int:
        async with self._lock:
            try:
                got = str(await self._in_thread(self._finish))
                if got != self.digest:
                    raise DigestMismatch(self.digest, got)
                await self._adopt(self.path, self.digest, self.prefix)
            except BaseException:
                self._drop()
                raise
            self._close()
            return self.prefix

    async def abort(self) -> None:
        self._drop()

    # --- in a thread ---

    def _write(self, offset: int, data: bytes) -> None:
        self._put(offset, data)
        if offset <= self.prefix < offset + len(data):
            self._hashed(memoryview(data)[self.prefix - offset :])

    def _put(self, offset: int, data: bytes | bytearray) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            view, offset = view[written:], offset + written

    def _advance(self, end: int, known: Mapping[int, str]) -> None:
        while self.prefix < end:
            index, inside = divmod(self.prefix, CHUNK)
            digest = known.get(index) if not inside else None
            self._advance_to(min(end, (index + 1) * CHUNK), chunked=digest is None)
            if digest is not None:
                self._chunks.append(digest)

    def _advance_to(self, end: int, *, chunked: bool) -> None:
        while self.prefix < end:
            data = os.pread(self._fd, min(BLOCK, end - self.prefix), self.prefix)
            if not data:
                raise StoreUnavailable(f"{self.path} is shorter than what was written to it")
            self._hash.update(data)
            if chunked:
                self._chunks.update(memoryview(data))
            self.prefix += len(data)

    def _hashed(self, data: memoryview) -> None:
        self._hash.update(data)
        self._chunks.update(data)
        self.prefix += len(data)

    def _finish(self) -> Digest:
        self._chunks.finish()
        if self._fsync:
            os.fdatasync(self._fd)
        return Digest("sha256:" + self._hash.hexdigest())

    async def _in_thread(self, action: Callable[..., object], *args: object) -> object:
        if self._done:
            raise LeaseholdError(
                "transfer_ended", f"the transfer of {self.digest} ended", kind=Kind.UNAVAILABLE
            )
        # Shielded: a cancelled caller must not leave a thread writing to a descriptor that the
        # next file may get.
        work = asyncio.ensure_future(asyncio.to_thread(action, *args))
        try:
            with disk_errors():
                return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait({work})
            raise

    def _drop(self) -> None:
        if not self._done:
            self.path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        if not self._done:
            self._done = True
            os.close(self._fd)


class disk_errors:
    """``with disk_errors():`` turns what the disk says into what it means."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_full(str(error)) from error
            raise StoreUnavailable(f"the image store cannot be used: {error}") from error


def disk_full(why: str) -> LeaseholdError:
    return LeaseholdError(
        "disk_full",
        f"no room for the image: {why}; free disk space or run `leasehold images gc`",
        kind=Kind.UNAVAILABLE,
        retry_after=60.0,
    )


async def read_at(fd: int, offset: int, length: int) -> bytes:
    """A read that stays on the event loop when the page cache has it, else goes to a thread."""
    buffer = bytearray(length)
    try:
        got = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
        if got == length:
            return bytes(buffer)
    except BlockingIOError:
        pass
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise StoreUnavailable(f"the image store cannot be read: {error}") from error
    work = asyncio.ensure_future(asyncio.to_thread(os.pread, fd, length, offset))
    try:
        with disk_errors():
            return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise
