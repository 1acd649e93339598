"""Verified content on disk, by digest.

``<root>/blobs/sha256/<2 hex>/<64 hex>``; content arrives in ``<root>/tmp`` and becomes visible by
one rename, after its hash was checked and its bytes reached the disk. So a file with a digest for a
name is that digest, after any crash. Start: read the names, rank by last use (the file's mtime),
drop strangers, empty ``tmp``; nothing is hashed again (``verify`` does that when asked).

What the disk refuses to say is an error (``StoreUnavailable``), never "not here".
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from leasehold.core.clock import Clock, SystemClock
from leasehold.core.logs import get_logger
from leasehold.core.metrics import gauge
from leasehold.core.service import Service
from leasehold.images.settings import ImagesSettings
from leasehold.images.staging import BLOCK, Staged, disk_errors, disk_full, read_at
from leasehold.model.digest import Digest, is_digest

TOUCH_SECONDS = 60.0
"""A use is written to the file's mtime at most this often."""

HELD = gauge("leasehold_images_store_bytes", "Bytes of blobs held")
BLOBS = gauge("leasehold_images_store_blobs", "Blobs held")

log = get_logger(__name__)


class FileReader:
    """An open blob. The descriptor outlives an eviction."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size

    @property
    def fd(self) -> int:
        """The descriptor, valid until ``close``; read it with an offset."""
        return self._fd

    @property
    def size(self) -> int:
        return self._size

    async def read(self, offset: int, length: int) -> bytes:
        length = min(length, self._size - offset)
        return await read_at(self._fd, offset, length) if length > 0 else b""

    async def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class FileStore(Service):
    """A ``Store`` on a directory."""

    def __init__(
        self, root: Path, settings: ImagesSettings | None = None, clock: Clock | None = None
    ) -> None:
        super().__init__("image store", clock=clock or SystemClock())
        self.root = root
        self.settings = settings or ImagesSettings()
        self._blobs = root / "blobs" / "sha256"
        self._tmp = root / "tmp"
        self._entries: OrderedDict[Digest, int] = OrderedDict()  # size; oldest use first
        self._touched: dict[Digest, float] = {}
        self.bytes = 0

    async def start(self) -> None:
        with disk_errors():
            await asyncio.to_thread(self._prepare)
            found = await asyncio.to_thread(self._scan)
        for _, digest, size in sorted(found):
            self._entries[digest] = size
        self._count(sum(self._entries.values()))
        log.info("images.store.scanned", blobs=len(self._entries), bytes=self.bytes)

    async def has(self, digest: Digest) -> bool:
        return await self.size(digest) is not None

    async def size(self, digest: Digest) -> int | None:
        try:
            return os.stat(self.path(digest)).st_size
        except FileNotFoundError:
            self._forget(digest)
            return None
        except OSError as error:
            with disk_errors():
                raise error
            return None  # pragma: no cover

    async def open(self, digest: Digest) -> FileReader | None:
        path = self.path(digest)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._forget(digest)
            return None
        except OSError as error:
            with disk_errors():
                raise error
            return None  # pragma: no cover
        self._used(digest, path)
        return FileReader(fd, os.fstat(fd).st_size)

    async def writer(self, digest: Digest, size: int | None = None) -> Staged:
        free, keep = self.free, self.headroom
        if free < (size or 0) + keep:
            raise disk_full(
                f"{digest} needs {size or 'some'} bytes, {free} are free and {keep} stay free"
            )
        path = self._tmp / f"{secrets.token_hex(16)}.partial"
        return Staged(path, digest, self._adopt, fsync=self.settings.fsync)

    async def delete(self, digest: Digest) -> bool:
        with disk_errors():
            try:
                await asyncio.to_thread(os.unlink, self.path(digest))
            except FileNotFoundError:
                self._forget(digest)
                return False
        self._forget(digest)
        return True

    async def digests(self) -> AsyncIterator[Digest]:
        for digest in list(self._entries):
            if digest in self._entries:
                yield digest

    def path(self, digest: Digest) -> Path:
        """Where ``digest`` is or would be."""
        return self._blobs / digest.hex[:2] / digest.hex

    @property
    def free(self) -> int:
        """Bytes free on the disk."""
        with disk_errors():
            return shutil.disk_usage(self._tmp).free

    @property
    def headroom(self) -> int:
        """Bytes of free disk that no transfer may take."""
        # A tenth of the disk at most: a budget larger than the disk must not block everything.
        wanted = int(self.settings.budget_bytes * self.settings.headroom_percent / 100)
        with disk_errors():
            return min(wanted, shutil.disk_usage(self._tmp).total // 10)

    async def verify(self, digest: Digest) -> bool | None:
        """Hash the content again: True good, False bad, None not held."""
        reader = await self.open(digest)
        if reader is None:
            return None
        try:
            got = hashlib.sha256()
            offset = 0
            while piece := await reader.read(offset, BLOCK):
                await asyncio.to_thread(got.update, piece)
                offset += len(piece)
            return got.hexdigest() == digest.hex
        finally:
            await reader.close()

    async def _adopt(self, path: Path, digest: Digest, size: int) -> None:
        with disk_errors():
            await asyncio.to_thread(self._rename, path, self.path(digest))
        if digest not in self._entries:
            self._entries[digest] = size
            self._count(self.bytes + size)

    def _rename(self, source: Path, target: Path) -> None:
        target.parent.mkdir(exist_ok=True)
        os.chmod(source, 0o444)
        os.replace(source, target)
        if self.settings.fsync:
            fd = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def _used(self, digest: Digest, path: Path) -> None:
        if digest in self._entries:
            self._entries.move_to_end(digest)
        now = self.clock.monotonic()
        if now - self._touched.get(digest, -TOUCH_SECONDS) >= TOUCH_SECONDS:
            self._touched[digest] = now
            with contextlib.suppress(OSError):
                os.utime(path)

    def _forget(self, digest: Digest) -> None:
        self._touched.pop(digest, None)
        size = self._entries.pop(digest, None)
        if size is not None:
            self._count(self.bytes - size)

    def _count(self, total: int) -> None:
        self.bytes = total
        HELD.set(total)
        BLOBS.set(len(self._entries))

    def _prepare(self) -> None:
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._tmp.mkdir(exist_ok=True)
        for leftover in self._tmp.iterdir():
            leftover.unlink()

    def _scan(self) -> Iterable[tuple[float, Digest, int]]:
        found = []
        for shard in os.scandir(self._blobs):
            if not shard.is_dir(follow_symlinks=False):
                os.unlink(shard.path)
                continue
            for entry in os.scandir(shard.path):
                name = f"sha256:{entry.name}"
                regular = entry.is_file(follow_symlinks=False)
                if regular and is_digest(name) and entry.name.startswith(shard.name):
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_mtime, Digest(name), status.st_size))
                elif regular or entry.is_symlink():
                    os.unlink(entry.path)
        return found
