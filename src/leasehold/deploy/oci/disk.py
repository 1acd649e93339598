"""A replica's own disk: a directory, or a file system of exactly the leased size.

The file system lives in a sparse file, so it takes the space that is written, not the space that
is leased. Making one takes 15 ms; the empty ones of each size are kept as templates and copied by
their few written blocks, which takes 1 ms.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from pathlib import Path

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.deploy.programs import find_program

_formatting = threading.Lock()

LEAST_DISK = 8 << 20
"""Bytes; a smaller file system has no room for itself."""


def available() -> bool:
    """True where sized disks can be had: loop devices and mkfs.ext4."""
    return os.path.exists("/dev/loop-control") and find_program("mkfs.ext4") is not None


def make(file: Path, size: int, templates: Path) -> None:
    """An empty file system of ``size`` bytes at ``file`` (kept when it is there already)."""
    if file.exists():
        return
    size = max(LEAST_DISK, -(-size // 4096) * 4096)
    template = templates / f"{size}.ext4"
    with _formatting:
        if not template.exists():
            _format(template, size)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = file.with_suffix(".new")
    _copy_sparse(template, temporary, size)
    os.replace(temporary, file)


def _format(template: Path, size: int) -> None:
    program = find_program("mkfs.ext4")
    assert program is not None
    template.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = template.with_suffix(f".{os.getpid()}")
    with open(temporary, "wb") as file:
        file.truncate(size)
    # No journal: what is on it does not outlive the container anyway.
    features = "^has_journal,^resize_inode"
    done = subprocess.run(
        [program, "-q", "-F", "-m", "0", "-b", "4096", "-O", features, "-E",
         "lazy_itable_init=1,nodiscard", str(temporary)],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise LeaseholdError(
            "disk_not_made",
            f"cannot make a disk of {size} bytes: {done.stderr.strip()[-300:]}",
            kind=Kind.UNAVAILABLE,
        )
    os.replace(temporary, template)


def _copy_sparse(source: Path, target: Path, size: int) -> None:
    with open(source, "rb") as reader, open(target, "wb") as writer:
        writer.truncate(size)
        offset = 0
        while True:
            try:
                start = os.lseek(reader.fileno(), offset, os.SEEK_DATA)
            except OSError:
                return
            offset = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
            os.lseek(writer.fileno(), start, os.SEEK_SET)
            os.lseek(reader.fileno(), start, os.SEEK_SET)
            left = offset - start
            while left > 0:
                left -= os.sendfile(writer.fileno(), reader.fileno(), None, left)


def remove(folder: Path) -> None:
    """Everything a replica had on its own disk."""
    shutil.rmtree(folder, ignore_errors=True)
