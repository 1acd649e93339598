"""File contents, kept once by their SHA-256, whatever volume or snapshot they belong to.

An object is written beside and renamed into place, so that what has a name is complete; where the
file system can share blocks (reflink) nothing is copied. Objects become durable together, by one
``syncfs`` before the snapshot that needs them is named: see :meth:`ContentStore.settle`.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import stat
import tempfile
import threading
from pathlib import Path
from typing import IO

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.storage.progress import Tell, untold

BLOCK = 1 << 20
SMALL = 256 << 10
"""Bytes up to which a file is read once into memory instead of twice from disk."""

AT_ONCE = 64 << 20
"""Bytes the kernel is asked to copy at a time, so that progress can be told."""

FICLONE = 0x40049409
"""``ioctl`` that shares the blocks of another file (linux/fs.h)."""

_libc = ctypes.CDLL(None, use_errno=True)


def sync_filesystem(path: Path) -> None:
    """Make everything on the file system of ``path`` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) != 0:
            errno = ctypes.get_errno()
            raise OSError(errno, os.strerror(errno), str(path))
    finally:
        os.close(fd)


class Changed(Exception):
    """A file changed while it was being read."""


class ContentStore:
    """Objects at ``root/ab/cdef…``. Blocking: call it from a thread."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.added_bytes = 0
        self._folders: set[str] = set()
        self._sweeping = threading.Lock()

    def path(self, digest: str) -> Path:
        return self.root / digest[:2] / digest[2:]

    def has(self, digest: str) -> bool:
        """Whether it is there; if so, no :meth:`sweep` under way takes it any more."""
        with self._sweeping:
            try:
                os.utime(f"{self.root}/{digest[:2]}/{digest[2:]}")
            except FileNotFoundError:
                return False
        return True

    def put(self, fd: int, size: int) -> str:
        """Keep what the open file holds; returns its hex digest."""
        if size <= SMALL:
            data = os.pread(fd, SMALL + 1, 0)
            if len(data) > SMALL:
                raise Changed
            digest = hashlib.sha256(data).hexdigest()
            if not self.has(digest):
                self._write(digest, data)
            return digest
        digest = digest_of_fd(fd)
        if not self.has(digest):
            digest = self._copy(fd)
        return digest

    def _write(self, digest: str, data: bytes) -> None:
        target = self._folder(digest)
        name = f"{target}.{os.getpid()}-{ctypes.c_ulong(id(data)).value:x}"
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        try:
            try:
                _write_all(fd, data)
            finally:
                os.close(fd)
            os.rename(name, target)
        except BaseException:
            os.unlink(name)
            raise
        self.added_bytes += len(data)

    def _copy(self, source: int) -> str:
        """Copy first, then name it by what was copied: the source may change meanwhile."""
        self.root.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=self.root, prefix=".new-")
        try:
            try:
                clone_or_copy(source, fd)
                digest = digest_of_fd(fd)
                size = os.fstat(fd).st_size
                os.fchmod(fd, 0o400)
            finally:
                os.close(fd)
            os.rename(name, self._folder(digest))
        except BaseException:
            os.unlink(name)
            raise
        self.added_bytes += size
        return digest

    def put_stream(self, stream: IO[bytes]) -> str:
        """Keep what ``stream`` holds, of any size; returns its hex digest."""
        self.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.root) as spool:
            size = 0
            while block := stream.read(BLOCK):
                spool.write(block)
                size += len(block)
            spool.flush()
            return self.put(spool.fileno(), size)

    def _folder(self, digest: str) -> str:
        folder = f"{self.root}/{digest[:2]}"
        if folder not in self._folders:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._folders.add(folder)
        return f"{folder}/{digest[2:]}"

    def fetch(self, digest: str, target: int, tell: Tell = untold) -> None:
        """Write the object's bytes into the open, empty file ``target``."""
        try:
            fd = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise content_missing(digest) from None
        try:
            clone_or_copy(fd, target, tell)
        finally:
            os.close(fd)

    def settle(self) -> None:
        """Everything put so far survives a power cut from here on."""
        self.root.mkdir(parents=True, exist_ok=True)
        sync_filesystem(self.root)

    def bytes(self) -> int:
        """Bytes stored now."""
        total = 0
        for folder in os.scandir(self.root):
            if folder.is_dir():
                total += sum(entry.stat().st_size for entry in os.scandir(folder.path))
        return total

    def sweep(self, needed: set[str], older_than: float) -> int:
        """Delete objects not in ``needed`` and last touched before ``older_than`` (seconds UTC).

        Returns the bytes freed. The age keeps what a snapshot under way has put.
        """
        freed = 0
        for folder in os.scandir(self.root):
            if not folder.is_dir():
                continue
            for entry in os.scandir(folder.path):
                if folder.name + entry.name in needed:
                    continue
                with self._sweeping:
                    found = os.stat(entry.path)
                    if found.st_mtime < older_than:
                        os.unlink(entry.path)
                        freed += found.st_size
        return freed


def content_missing(digest: str) -> LeaseholdError:
    return LeaseholdError(
        "content_missing",
        f"the content {digest} of a snapshot is not in the store; that snapshot is damaged",
        kind=Kind.INTERNAL,
        got=digest,
    )


def clone_or_copy(source: int, target: int, tell: Tell = untold) -> None:
    """All bytes of one open file into another, shared where the file system can."""
    try:
        fcntl.ioctl(target, FICLONE, source)
        tell(os.fstat(source).st_size)
        return
    except OSError:
        pass
    offset = 0
    while True:
        try:
            copied = os.copy_file_range(source, target, AT_ONCE, offset, offset)
        except OSError:
            break  # across file systems on old kernels: by hand
        if copied == 0:
            return
        offset += copied
        tell(copied)
    while block := os.pread(source, BLOCK, offset):
        _write_all(target, block, offset)
        offset += len(block)
        tell(len(block))


def digest_of_fd(fd: int, tell: Tell = untold) -> str:
    """The hex SHA-256 of an open file."""
    hasher = hashlib.sha256()
    offset = 0
    while block := os.pread(fd, BLOCK, offset):
        hasher.update(block)
        offset += len(block)
        tell(len(block))
    return hasher.hexdigest()


def digest_of(path: Path | str, tell: Tell = untold) -> str:
    """The hex SHA-256 of a regular file."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"not a regular file: {path}")
        return digest_of_fd(fd, tell)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes, offset: int = 0) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written
