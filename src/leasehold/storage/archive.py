"""A snapshot as one compressed tar, readable by any ``tar``, and back.

Packing writes what the snapshot recorded, from the content store, so the archive does not depend
on the files being there. Unpacking only trusts the archive for contents: every file's bytes go
back to the store under their own hash, and the tree is then restored from the snapshot.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import IO, cast

import zstandard

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.storage.content import BLOCK, ContentStore
from leasehold.storage.progress import Tally, Tell, untold
from leasehold.storage.shadow import Shadow

LEVEL = 3
"""zstd's level: about as fast as the disk."""

_TYPES = {"f": tarfile.REGTYPE, "d": tarfile.DIRTYPE, "l": tarfile.SYMTYPE}


class _Hashing(io.RawIOBase):
    """Passes bytes on and hashes them."""

    def __init__(self, inner: IO[bytes]) -> None:
        self.inner = inner
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(cast("bytes", data))
        self.hash.update(view)
        self.inner.write(view)
        return len(view)


class _Counting:
    """Tells of the bytes that are read from ``inner``."""

    def __init__(self, inner: IO[bytes], tell: Tell) -> None:
        self.inner = inner
        self.tell = tell

    def read(self, count: int = -1) -> bytes:
        data = self.inner.read(count)
        self.tell(len(data))
        return data


def pack(shadow: Shadow, commit: str, target: Path, tally: Tally | None = None) -> str:
    """Write the archive of ``commit`` to ``target``; returns its hex SHA-256.

    Complete and durable under its name or not there at all; one that is there is kept.
    """
    tally = tally or Tally()
    if target.exists():
        tally.expect(target.stat().st_size)
        return checksum(target, tally.add)
    tally.expect(sum(r.size for _, r in shadow.records(commit) if r.type == "f"))
    partial = target.with_name(f"{target.name}.partial")
    with partial.open("wb") as raw:
        hashing = _Hashing(raw)
        with (
            zstandard.ZstdCompressor(level=LEVEL).stream_writer(
                cast("IO[bytes]", hashing), closefd=False
            ) as packed,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
        ):
            for path, record in shadow.records(commit):
                info = tarfile.TarInfo(path)
                info.type, info.mode = _TYPES[record.type], record.mode
                info.uid, info.gid, info.mtime = record.uid, record.gid, record.mtime / 1e9
                if record.type == "f":
                    info.size = record.size
                    with shadow.content.path(record.content).open("rb") as content:
                        tar.addfile(info, cast("IO[bytes]", _Counting(content, tally.add)))
                else:
                    info.linkname = record.content
                    tar.addfile(info)
        raw.flush()
        os.fsync(raw.fileno())
    os.rename(partial, target)
    _sync_folder(target.parent)
    return hashing.hash.hexdigest()


def unpack_contents(
    archive: Path, sha256: str, content: ContentStore, tally: Tally | None = None
) -> None:
    """Put the contents of every file in ``archive`` back into the store."""
    tally = tally or Tally()
    tally.expect(2 * archive.stat().st_size)  # to hash it, and to unpack it
    found = checksum(archive, tally.add)
    if found != sha256:
        raise LeaseholdError(
            "archive_damaged",
            f"the archive {archive} does not have its recorded checksum; nothing was changed",
            kind=Kind.INTERNAL,
            expected=sha256,
            got=found,
        )
    with (
        archive.open("rb") as raw,
        zstandard.ZstdDecompressor().stream_reader(
            cast("IO[bytes]", _Counting(raw, tally.add))
        ) as plain,
        tarfile.open(fileobj=plain, mode="r|") as tar,
    ):
        for member in tar:
            if member.isreg():
                stream = tar.extractfile(member)
                assert stream is not None
                content.put_stream(stream)
    content.settle()


def checksum(archive: Path, tell: Tell = untold) -> str:
    hasher = hashlib.sha256()
    with archive.open("rb") as raw:
        while block := raw.read(BLOCK):
            hasher.update(block)
            tell(len(block))
    return hasher.hexdigest()


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
