"""The files of a package: a directory of this machine, or the layers of an OCI artifact as one.

Both are read the same way: ``find`` gives the files a name stands for. Nothing outside is reached:
a name or a link that leads out of a directory is refused, and links in layers are left out, because
what they mean depends on where the layers end up.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from leasehold.core.errors import LeaseholdError

OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
"""Marks, of overlayfs, on a directory that hides what lower layers have in it."""


class Tree(Protocol):
    """Files by name relative to the package file, with ``/`` between directories."""

    def find(self, name: str) -> dict[str, Path]:
        """The file ``name``, or every file in the directory ``name``; LeaseholdError if none."""
        ...


class Folder:
    """A directory; what is in it may change between two looks."""

    def __init__(self, base: Path) -> None:
        self.base = base

    def find(self, name: str) -> dict[str, Path]:
        base = self.base.resolve()
        path = self.base / name
        if not path.resolve().is_relative_to(base):
            raise _outside(name, self.base)
        if not path.exists():
            raise _missing(name, str(path))
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            if not file.resolve().is_relative_to(base):
                raise _outside(str(file.relative_to(self.base)), self.base)
        return {os.path.relpath(file, self.base): file for file in files}


class Layers:
    """The regular files of unpacked layers, bottom first: upper ones hide lower ones."""

    def __init__(self, layers: Sequence[Path]) -> None:
        self.files: dict[str, Path] = {}
        for layer in layers:
            for directory, folders, names in os.walk(layer):
                here = os.path.relpath(directory, layer)
                if here != "." and _is_opaque(directory):
                    self._hide(here)
                for name in [*folders, *names]:
                    self._put(os.path.normpath(f"{here}/{name}"), Path(directory, name))

    def _put(self, key: str, path: Path) -> None:
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            self.files.pop(key, None)
            return
        # A file hides a file or a directory; so does a link, and so does a deletion, which is a
        # character device.
        self._hide(key)
        if stat.S_ISREG(mode):
            self.files[key] = path

    def _hide(self, key: str) -> None:
        for known in [k for k in self.files if k == key or k.startswith(f"{key}/")]:
            del self.files[known]

    def find(self, name: str) -> dict[str, Path]:
        key = os.path.normpath(name)
        if key.startswith(("/", "..")):
            raise _outside(name, "the artifact")
        if key in self.files:
            return {key: self.files[key]}
        found = {k: p for k, p in sorted(self.files.items()) if k.startswith(f"{key}/")}
        if not found:
            raise _missing(name, f"{name} in the artifact")
        return found


def _is_opaque(directory: str) -> bool:
    for name in OPAQUE:
        try:
            if os.getxattr(directory, name, follow_symlinks=False) == b"y":
                return True
        except OSError:
            continue
    return False


def _outside(name: str, base: object) -> LeaseholdError:
    return LeaseholdError("bad_file", f"{name!r} leads out of {base}", got=name)


def _missing(name: str, where: str) -> LeaseholdError:
    return LeaseholdError("file_missing", f"there is no {where}", got=name)
