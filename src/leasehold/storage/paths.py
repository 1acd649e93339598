"""From global paths to places on a host, and never out of them.

A global path is relative, normalised and made of plain names. On a host the repo's files are at
``<root>/files/<path>``, its shadow at ``<root>/shadows/<repo>.git``, where nobody but us goes:
tenants are given the files, never a directory above them. Every component below the root is
checked not to be a symbolic link, so that nothing planted there can lead elsewhere.
"""

from __future__ import annotations

import os
import re
import stat
import uuid
from pathlib import Path

from leasehold.core.errors import Kind, LeaseholdError

MAX_PATH = 1024
"""Bytes of a global path; leaves room for the root below Linux's 4096."""

MAX_NAME = 255
"""Bytes of one name, Linux's limit."""

NAMESPACE = uuid.UUID("ecb02ec6-006d-429f-a378-9392612f9c61")
"""UUIDv5 namespace of named entities (nog's)."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+-]*")


def check_global(path: str) -> str:
    """``path`` itself, or what is wrong with it."""
    problem = ""
    if not path:
        problem = "is empty"
    elif len(path.encode(errors="surrogateescape")) > MAX_PATH:
        problem = f"is longer than {MAX_PATH} bytes"
    elif path.startswith("/"):
        problem = "is absolute"
    else:
        for name in path.split("/"):
            if name in ("", ".", ".."):
                problem = f"contains {name!r} as a name"
            elif len(name) > MAX_NAME:
                problem = f"contains a name longer than {MAX_NAME} bytes"
            elif not _NAME.fullmatch(name):
                problem = f"contains the name {name[:40]!r}"
    if problem:
        raise _bad_path(problem, path)
    return path


def _bad_path(problem: str, path: str) -> LeaseholdError:
    return LeaseholdError(
        "volume_path_invalid",
        f"the volume path {problem}",
        path="path",
        expected="names of letters, digits and _ . : @ + -, joined by /",
        got=path[:200],
    )


def is_below(path: str, prefix: str) -> bool:
    """Whether ``path`` is at or below ``prefix``; the empty prefix is above everything."""
    prefix = prefix.rstrip("/")
    return not prefix or f"{path}/".startswith(f"{prefix}/")


def volume_path(owner: str, dseq: int, service: str, volume: str) -> str:
    """Where the volume of a lease is in the registry."""
    path = check_global(f"leases/{owner}/{dseq}/{service}/{volume}")
    if path.count("/") != 4:
        raise _bad_path("has a name with a / in it", path)
    return path


def repo_id(registry: str, path: str, incarnation: int = 0) -> str:
    """The id of the repo first made at ``path``; each new ``incarnation`` there has another."""
    return str(uuid.uuid5(NAMESPACE, f"repo:{registry}:{path}:{incarnation}"))


class Layout:
    """The folders below the root of one storage host."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))
        self.files = self.root / "files"
        self.shadows = self.root / "shadows"
        self.content = self.root / "content"
        self.archives = self.root / "archives"
        self.staging = self.root / "staging"

    def make(self) -> None:
        for folder in (self.files, self.shadows, self.content, self.archives, self.staging):
            folder.mkdir(parents=True, exist_ok=True, mode=0o711)

    def host_path(self, path: str) -> Path:
        """Where the files of the global ``path`` are; refuses symbolic links on the way."""
        check_global(path)
        place = self.files
        for name in path.split("/"):
            place = place / name
            try:
                found = os.lstat(place)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _unusable(place, str(error)) from None
            if stat.S_ISLNK(found.st_mode):
                raise _unusable(place, "it is a symbolic link")
            if not stat.S_ISDIR(found.st_mode):
                raise _unusable(place, "it is not a directory")
        return self.files / path

    def shadow(self, repo: str) -> Path:
        return self.shadows / f"{repo}.git"

    def archive(self, repo: str, workflow: str) -> Path:
        return self.archives / f"{repo}.{workflow}.tar.zst"


def _unusable(place: Path, why: str) -> LeaseholdError:
    return LeaseholdError(
        "host_path_unusable",
        f"{place} cannot hold a volume: {why}",
        kind=Kind.CONFLICT,
        path="path",
        got=str(place),
    )
