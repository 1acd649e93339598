"""Copies a tree across file systems and proves it before it counts."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.storage.content import digest_of, sync_filesystem


def copy_tree(source: Path, target: Path) -> None:
    """``target`` becomes a verified copy: contents by SHA-256, modes, owners, times, links.

    What an interrupted copy left at ``target`` is thrown away first.
    """
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target, symlinks=True, copy_function=_copy)
    for folder, names, _ in os.walk(target, topdown=False):
        for name in names:
            _owner(source, target, Path(folder) / name)
    _owner(source, target, target)
    verify(source, target)
    sync_filesystem(target)


def _copy(source: str, target: str) -> str:
    found = os.lstat(source)
    if stat.S_ISREG(found.st_mode):
        shutil.copyfile(source, target, follow_symlinks=False)
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


def verify(source: Path, target: Path) -> None:
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
                same = digest_of(old) == digest_of(new)
            elif same and stat.S_ISLNK(mode):
                same = os.readlink(old) == os.readlink(new)
            if not same:
                raise LeaseholdError(
                    "copy_differs",
                    f"{old} is not the same at its new place; the move did not happen",
                    kind=Kind.INTERNAL,
                    got=str(new),
                )
