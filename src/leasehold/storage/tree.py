"""What a directory tree looks like: one record a file, one block of records a directory.

The text form is made for diffing and for hashing: sorted lines ``type mode uid gid size mtime
content name``, where content is a SHA-256 or a link's target, and names are raw bytes with
backslash escapes. Sockets, FIFOs and devices are not recorded.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from leasehold.core.errors import Kind, LeaseholdError


class Record(NamedTuple):
    """One entry of a directory. ``mode`` are the permission bits, ``mtime`` nanoseconds."""

    type: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    content: str
    name: str


class Seen(msgspec.Struct, array_like=True, gc=False):
    """What ``stat`` said of a file when its content was last read, to skip unchanged ones."""

    size: int
    mtime: int
    ctime: int
    inode: int
    content: str


def _quote(text: str) -> bytes:
    raw = os.fsencode(text)
    if b"\\" in raw or b"\n" in raw or b" " in raw:
        raw = raw.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b" ", b"\\s")
    return raw


_ESCAPES = {b"\\": b"\\", b"n": b"\n", b"s": b" "}


def _unquote(raw: bytes) -> str:
    if b"\\" in raw:
        out, i = bytearray(), 0
        while i < len(raw):
            if raw[i : i + 1] == b"\\":
                out += _ESCAPES[raw[i + 1 : i + 2]]
                i += 2
            else:
                out.append(raw[i])
                i += 1
        raw = bytes(out)
    return os.fsdecode(raw)


def encode(records: list[Record]) -> bytes:
    """The text of a directory's block."""
    lines = [
        b"%s %o %d %d %d %d %s %s\n"
        % (
            record.type.encode(),
            record.mode,
            record.uid,
            record.gid,
            record.size,
            record.mtime,
            _quote(record.content) or b"-",
            _quote(record.name),
        )
        for record in sorted(records, key=lambda record: record.name)
    ]
    return b"".join(lines)


def decode(block: bytes) -> Iterator[Record]:
    """The inverse of :func:`encode`; ``snapshot_damaged`` when it is not such a block."""
    try:
        for line in block.split(b"\n")[:-1]:
            type_, mode, uid, gid, size, mtime, content, name = line.split(b" ")
            if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
                raise ValueError(name)
            yield Record(
                type_.decode("ascii"),
                int(mode, 8),
                int(uid),
                int(gid),
                int(size),
                int(mtime),
                "" if content == b"-" else _unquote(content),
                _unquote(name),
            )
    except (ValueError, KeyError) as error:
        raise LeaseholdError(
            "snapshot_damaged",
            f"a snapshot holds a record that cannot be read: {error}",
            kind=Kind.INTERNAL,
        ) from None


def record_of(name: str, found: os.stat_result, content: str) -> Record | None:
    """The record of an entry, None for what is not recorded."""
    mode = found.st_mode
    if stat.S_ISREG(mode):
        type_, size = "f", found.st_size
    elif stat.S_ISDIR(mode):
        type_, size = "d", 0
    elif stat.S_ISLNK(mode):
        type_, size = "l", 0
    else:
        return None
    return Record(
        type_,
        stat.S_IMODE(mode),
        found.st_uid,
        found.st_gid,
        size,
        found.st_mtime_ns,
        content,
        name,
    )
