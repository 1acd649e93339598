"""What the layers below have: the merged view of a container, read without following links."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Parts = tuple[bytes, ...]
"""A path below the root, component by component."""


@dataclass(frozen=True, slots=True)
class Below:
    """What the layers below have at a path: ``link`` is set for a symbolic link."""

    directory: bool
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    link: bytes | None = None


class LowerLayers:
    """The merged view of unpacked layers (bottom first), read without following links."""

    def __init__(self, layers: Sequence[Path]) -> None:
        self._layers = [os.fsencode(p) for p in reversed(layers)]

    @functools.lru_cache(maxsize=65536)  # noqa: B019  (lives as long as one unpacking)
    def at(self, parts: Parts) -> Below | None:
        """What is at ``parts``; None when nothing is."""
        for layer in self._layers:
            found, hidden = self._in_layer(layer, parts)
            if found is not None or hidden:
                return found
        return None

    def _in_layer(self, layer: bytes, parts: Parts) -> tuple[Below | None, bool]:
        """What this layer has there, and whether it hides what is further down."""
        path = layer
        hides = False
        for index, part in enumerate(parts):
            path += b"/" + part
            try:
                found = os.lstat(path)
            except OSError:
                return None, hides
            if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
                return None, True
            directory = stat.S_ISDIR(found.st_mode)
            if index == len(parts) - 1:
                mode = stat.S_IMODE(found.st_mode)
                link = os.readlink(path) if stat.S_ISLNK(found.st_mode) else None
                mtime = int(found.st_mtime)
                return Below(directory, mode, found.st_uid, found.st_gid, mtime, link), True
            if not directory:
                return None, True
            hides = hides or is_opaque(path)
        return None, hides


def is_opaque(path: bytes) -> bool:
    """True when overlayfs shows nothing of what is below this directory."""
    for name in ("trusted.overlay.opaque", "user.overlay.opaque"):
        try:
            if os.getxattr(path, name, follow_symlinks=False) == b"y":
                return True
        except OSError:
            continue
    return False
