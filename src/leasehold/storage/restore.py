"""Makes a directory what a snapshot says, byte for byte, touching only what differs.

Every step is relative to an open directory and follows no links. A file is written beside and
renamed over the old one, so whoever has the old one open keeps it. Doing it again after a crash
changes what was not done yet.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections import defaultdict
from pathlib import Path

from leasehold.storage.content import ContentStore, digest_of_fd
from leasehold.storage.progress import Tally
from leasehold.storage.shadow import Shadow
from leasehold.storage.tree import Record

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = ".leasehold-restoring"


class Restored:
    """What a restore did."""

    def __init__(self) -> None:
        self.written = 0
        self.bytes = 0
        self.removed = 0
        self.kept = 0


def restore(shadow: Shadow, commit: str, target: Path, tally: Tally | None = None) -> Restored:
    """Make ``target`` (made when missing) hold exactly what snapshot ``commit`` holds."""
    wanted: dict[str, dict[str, Record]] = defaultdict(dict)
    for path, record in shadow.records(commit):
        wanted[path.rpartition("/")[0]][record.name] = record
    target.mkdir(parents=True, exist_ok=True)
    done = Restored()
    tally = tally or Tally()
    tally.expect(sum(r.size for rs in wanted.values() for r in rs.values() if r.type == "f"))
    _directory(os.open(target, _DIRECTORY), "", wanted, shadow, done, tally)
    return done


def _directory(
    folder: int,
    relative: str,
    wanted: dict[str, dict[str, Record]],
    shadow: Shadow,
    done: Restored,
    tally: Tally,
) -> None:
    try:
        records = wanted.get(relative, {})
        with os.scandir(folder) as entries:
            present = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
        for name in present.keys() - records.keys():
            _remove(folder, name, present[name])
            done.removed += 1
        for name, record in records.items():
            found = present.get(name)
            if found is not None and not _same_type(found, record):
                _remove(folder, name, found)
                found = None
            if record.type == "d":
                if found is None:
                    os.mkdir(name, 0o700, dir_fd=folder)
                child = os.open(name, _DIRECTORY, dir_fd=folder)
                below = f"{relative}/{name}" if relative else name
                _directory(child, below, wanted, shadow, done, tally)
                _attributes(folder, record)
            elif record.type == "l":
                _link(folder, record, found is not None)
            else:
                _file(folder, record, found, shadow.content, done, tally)
    finally:
        os.close(folder)


def _same_type(found: os.stat_result, record: Record) -> bool:
    test = {"f": stat.S_ISREG, "d": stat.S_ISDIR, "l": stat.S_ISLNK}[record.type]
    return test(found.st_mode)


def _remove(folder: int, name: str, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        shutil.rmtree(name, dir_fd=folder)
    else:
        os.unlink(name, dir_fd=folder)


def _link(folder: int, record: Record, exists: bool) -> None:
    if exists:
        if os.readlink(record.name, dir_fd=folder) == record.content:
            return
        os.unlink(record.name, dir_fd=folder)
    os.symlink(record.content, record.name, dir_fd=folder)
    with contextlib.suppress(PermissionError):
        os.chown(record.name, record.uid, record.gid, dir_fd=folder, follow_symlinks=False)
    os.utime(record.name, ns=(record.mtime, record.mtime), dir_fd=folder, follow_symlinks=False)


def _file(
    folder: int,
    record: Record,
    found: os.stat_result | None,
    content: ContentStore,
    done: Restored,
    tally: Tally,
) -> None:
    if found is not None and found.st_size == record.size and _holds(folder, record):
        _attributes(folder, record, found)
        done.kept += 1
        tally.add(record.size)
        return
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(_NEW, flags, 0o600, dir_fd=folder)
    try:
        content.fetch(record.content, fd, tally.add)
        if os.fstat(fd).st_uid != record.uid or os.fstat(fd).st_gid != record.gid:
            with contextlib.suppress(PermissionError):
                os.fchown(fd, record.uid, record.gid)
        os.fchmod(fd, record.mode)
        os.utime(fd, ns=(record.mtime, record.mtime))
    except BaseException:
        os.unlink(_NEW, dir_fd=folder)
        raise
    finally:
        os.close(fd)
    os.rename(_NEW, record.name, src_dir_fd=folder, dst_dir_fd=folder)
    done.written += 1
    done.bytes += record.size


def _holds(folder: int, record: Record) -> bool:
    fd = os.open(
        record.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder
    )
    try:
        return digest_of_fd(fd) == record.content
    finally:
        os.close(fd)


def _attributes(folder: int, record: Record, found: os.stat_result | None = None) -> None:
    """Owner, mode and time of a file or directory that is there."""
    if found is None:
        found = os.stat(record.name, dir_fd=folder, follow_symlinks=False)
    if (found.st_uid, found.st_gid) != (record.uid, record.gid):
        with contextlib.suppress(PermissionError):
            os.chown(record.name, record.uid, record.gid, dir_fd=folder, follow_symlinks=False)
    if stat.S_IMODE(found.st_mode) != record.mode:
        fd = os.open(
            record.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder
        )
        try:
            os.fchmod(fd, record.mode)
        finally:
            os.close(fd)
    if found.st_mtime_ns != record.mtime:
        os.utime(record.name, ns=(record.mtime, record.mtime), dir_fd=folder, follow_symlinks=False)
