"""A provider's state and keys in one file, to come back on another machine.

What is in it: the log, the market, keys and tokens, settings beside them. What is not: images
(pulled again), volumes (tenants' data has its own ways), and everything of the running node
(containers, proxy, keeper), which the provider makes anew from the log. The provider must not run
meanwhile; its workloads may, they do not notice.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

from leasehold import __version__
from leasehold.app.folder import StateFolder
from leasehold.core.errors import Kind, LeaseholdError

CONTENTS = "backup.json"
LEFT_OUT = ("images", "volumes", "deploy/keeper", "deploy/oci", "deploy/ingress", "deploy/names",
            "deploy/process", "home")  # fmt: skip
"""Folders that are made again, or are not the provider's own."""

MOST_FILES = 100_000
"""Files accepted in a backup that is restored."""


class Contents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """First member of a backup: what made it and the SHA-256 of every file."""

    version: str
    created: float
    files: dict[str, str]


def create(folder: Path, target: Path) -> list[str]:
    """Write the backup of ``folder`` to ``target`` (mode 0600); the files that are in it.

    LeaseholdError ``state_in_use`` while the provider runs.
    """
    if not (folder / "provider.key").exists():
        raise LeaseholdError(
            "no_state", f"there is no provider's state in {folder}", kind=Kind.NOT_FOUND, got=folder
        )
    with _locked(folder), tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        copies = {
            name: _settled(path, Path(scratch) / f"{number}")
            for number, (name, path) in enumerate(_files(folder))
        }
        contents = Contents(
            __version__, time.time(), {name: _digest(path) for name, path in copies.items()}
        )
        temporary = Path(scratch) / "backup"
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            with tarfile.open(fileobj=file, mode="w:gz") as tar:
                text = msgspec.json.encode(contents)
                head = tarfile.TarInfo(CONTENTS)
                head.size = len(text)
                tar.addfile(head, io.BytesIO(text))
                for name, path in copies.items():
                    tar.add(path, name, recursive=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    return list(copies)


def restore(source: Path, folder: Path) -> list[str]:
    """Put a backup into ``folder``, which must hold no provider yet; all of it or nothing.

    LeaseholdError ``state_exists``, or ``bad_backup`` with what is wrong with the file.
    """
    if (folder / "provider.key").exists():
        raise LeaseholdError(
            "state_exists",
            f"{folder} already holds a provider; choose another folder with --state",
            kind=Kind.CONFLICT,
            got=folder,
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        try:
            with tarfile.open(source, "r:gz") as tar:
                names = _unpack(tar, Path(scratch))
        except (tarfile.TarError, OSError, EOFError, msgspec.MsgspecError) as error:
            raise _bad(source, str(error)) from None
        folder.mkdir(mode=0o711, exist_ok=True)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            # The key last: it is what says that a provider lives here.
            if name != "provider.key":
                os.replace(Path(scratch) / name, folder / name)
        os.replace(Path(scratch) / "provider.key", folder / "provider.key")
    return names


def _unpack(tar: tarfile.TarFile, scratch: Path) -> list[str]:
    head = tar.next()
    file = tar.extractfile(head) if head is not None and head.name == CONTENTS else None
    if file is None:
        raise tarfile.TarError("it does not start with its contents")
    contents = msgspec.json.decode(file.read(64 << 20), type=Contents)
    if len(contents.files) > MOST_FILES or "provider.key" not in contents.files:
        raise tarfile.TarError("it is not a provider's backup")
    found = []
    while (member := tar.next()) is not None:
        name = member.name
        parts = PurePosixPath(name).parts
        if not member.isfile() or name.startswith("/") or ".." in parts:
            raise tarfile.TarError(f"it holds {name!r}, which is no plain file below the folder")
        data = tar.extractfile(member)
        assert data is not None
        path = scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            while chunk := data.read(1 << 20):
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        if _digest(path) != contents.files.get(name):
            raise tarfile.TarError(f"{name!r} is damaged")
        found.append(name)
    missing = set(contents.files) - set(found)
    if missing:
        raise tarfile.TarError(f"it ends before {sorted(missing)[0]!r}")
    return found


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(name == out or name.startswith(f"{out}/") for out in LEFT_OUT):
            continue
        if path.is_symlink() or not path.is_file():
            continue
        if name in ("lock", "run.json") or name.endswith(("-wal", "-shm", ".lock", ".new")):
            continue
        yield name, path


def _settled(path: Path, scratch: Path) -> Path:
    """A database as one file, whatever is still in its write-ahead log."""
    if path.suffix != ".sqlite3":
        return path
    with (
        contextlib.closing(sqlite3.connect(path)) as source,
        contextlib.closing(sqlite3.connect(scratch)) as copy,
    ):
        source.backup(copy)
    return scratch


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    state = StateFolder(folder)
    state.open()
    try:
        yield
    finally:
        state.close()


def _bad(source: Path, why: str) -> LeaseholdError:
    return LeaseholdError("bad_backup", f"{source} cannot be restored: {why}", got=source)
