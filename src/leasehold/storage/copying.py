"""Copies a tree across file systems and proves it before it counts."""

from __future__ import annotations

import os
import shutil
import stat
from functools import partial
from pathlib import Path

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.storage.content import BLOCK, digest_of, sync_filesystem
from leasehold.storage.progress import Tally, Tell, untold

PASSES = 3
"""How often each byte is read: copied once, compared on both sides."""


def copy_tree(source: Path, target: Path, tally: Tally | None = None) -> None:
    """``target`` becomes a verified copy: contents by SHA-256, modes, owners, times, links.

    What an interrupted copy left at ``target`` is thrown away first.
    """
    tally = tally or Tally()
    tally.expect(PASSES * _bytes(source))
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target, symlinks=True, copy_function=partial(_copy, tell=tally.add))
    for folder, names, _ in os.walk(target, topdown=False):
        for name in names:
            _owner(source, target, Path(folder) / name)
    _owner(source, target, target)
    verify(source, target, tally.add)
    sync_filesystem(target)


def _bytes(tree: Path) -> int:
    """Of all regular files."""
    total = 0
    for folder, _, names in os.walk(tree):
        for name in names:
            found = os.lstat(os.path.join(folder, name))
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def _copy(source: str, target: str, tell: Tell) -> str:
    found = os.lstat(source)
    if stat.S_ISREG(found.st_mode):
        with open(source, "rb") as old, open(target, "wb") as new:
            while block := old.read(BLOCK):
                new.write(block)
                tell(len(block))
    elif stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(source), target)
    else:
        return target  # sockets, FIFOs and devices are not part of a volume
    os.chown(target, found.st_uid, found.st_gid, follow_symlinks=False)
    shutil.copystat(source, target, follow_symlinks=False)
    return target


def _owner(source: Path, target: Path, folder: Path) -> None:
    original = source / folder.relative_to(target)
    found = original.lstat()
    if stat.S_ISDIR(found.st_mode):
        os.chown(folder, found.st_uid, found.st_gid)
        shutil.copystat(original, folder)


def verify(source: Path, target: Path, tell: Tell = untold) -> None:
    """Raise ``copy_differs`` unless both trees are the same."""
    for folder, names, files in os.walk(source):
        for name in names + files:
            old = Path(folder) / name
            new = target / old.relative_to(source)
            mode = old.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                continue
            same = new.is_symlink() or new.exists()
            same = same and new.lstat().st_mode == mode
            if same and stat.S_ISREG(mode):
                same = digest_of(old, tell) == digest_of(new, tell)
            elif same and stat.S_ISLNK(mode):
                same = os.readlink(old) == os.readlink(new)
            if not same:
                raise LeaseholdError(
                    "copy_differs",
                    f"{old} is not the same at its new place; the move did not happen",
                    kind=Kind.INTERNAL,
                    got=str(new),
                )
