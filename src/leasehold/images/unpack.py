"""A layer becomes a directory.

:mod:`extraction` fills it; this module says what it is called and whether it is there. Directories
are ``<root>/<diff id>``; a layer that had to borrow parents' owners and modes from the layers below
is kept under ``<diff id>.<variant>`` and shared by every image that would have borrowed the same. A
directory appears by one rename. It counts as complete in the boot that made it; a ``syncfs`` in the
background makes it outlive a power cut, and whatever was not synced is made again after one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from leasehold.core.logs import get_logger
from leasehold.images.extraction import Pipeline
from leasehold.images.lower import Below, LowerLayers, Parts
from leasehold.images.settings import ImagesSettings
from leasehold.images.tarstream import LayerFilter
from leasehold.model.digest import Digest

log = get_logger(__name__)


class Made(msgspec.Struct):
    """The note beside a layer directory."""

    diff_id: str
    boot: str
    """The boot that unpacked it; empty once it is synced to disk."""
    bytes: int
    parents: list[tuple[str, tuple[bool, int, int, int, int, str | None] | None]] = []


class Layers:
    """The unpacked layers of a node."""

    def __init__(self, root: Path, settings: ImagesSettings | None = None) -> None:
        self.root = root
        self.settings = settings or ImagesSettings()
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._locks: dict[str, asyncio.Lock] = {}
        self._unsynced: set[Path] = set()
        self.claimed: Counter[Path] = Counter()
        """Directories in the hands of an ``ensure`` that has not recorded its image yet."""

    def prepare(self) -> None:
        """Drop what a crash or a power cut left half-made. Call once at start."""
        self.root.mkdir(parents=True, exist_ok=True)
        for path in self.root.iterdir():
            if path.suffix == ".tmp":
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == ".json":
                made = self._note(path.with_suffix(""))
                if made is None or made.boot not in ("", self._boot):
                    self._remove(path.with_suffix(""))
                elif made.boot:
                    self._unsynced.add(path.with_suffix(""))
            elif path.is_dir() and not _note_path(path).exists():
                shutil.rmtree(path, ignore_errors=True)

    async def find(self, diff_id: Digest, below: Sequence[Path]) -> Path | None:
        """The directory of ``diff_id`` on top of ``below`` (bottom first), if there is one."""
        return await asyncio.to_thread(self._find, diff_id, below)

    async def unpack(
        self, blob: Path | int, digest: Digest, diff_id: Digest, below: Sequence[Path]
    ) -> Path:
        """Unpack ``blob`` (a file or an open descriptor) unless it was; its directory.

        ``digest`` is checked on the compressed bytes, ``diff_id`` on the tar inside.
        """
        lock = self._locks.setdefault(diff_id, asyncio.Lock())
        try:
            async with lock:
                found = await self.find(diff_id, below)
                if found is not None:
                    return found
                return await self._in_thread(blob, digest, diff_id, below)
        finally:
            if not lock.locked():
                self._locks.pop(diff_id, None)

    async def _in_thread(
        self, blob: Path | int, digest: Digest, diff_id: Digest, below: Sequence[Path]
    ) -> Path:
        pipeline = Pipeline(self, blob, digest, diff_id, below)
        work = asyncio.ensure_future(asyncio.to_thread(pipeline.run))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            pipeline.cancel()
            await asyncio.wait({work})
            raise

    async def settle(self) -> None:
        """Make what was unpacked outlive a power cut."""
        if self._unsynced:
            await asyncio.to_thread(self._sync)

    def present(self) -> set[str]:
        """The diff ids of all complete directories, whatever they stand on."""
        return {made.diff_id for _, made in self.all()}

    def all(self) -> list[tuple[Path, Made]]:
        """Every complete layer directory."""
        found = []
        for path in self.root.glob("*.json"):
            made = self._note(path.with_suffix(""))
            if made is not None:
                found.append((path.with_suffix(""), made))
        return found

    def busy(self, path: Path) -> bool:
        """Whether an image that is being made ready may be about to use ``path``."""
        return self.claimed[path] > 0

    def let_go(self, paths: Sequence[Path]) -> None:
        """An ``ensure`` has recorded its image, or given up."""
        self.claimed.subtract(paths)
        self.claimed = +self.claimed

    async def remove(self, path: Path) -> None:
        await asyncio.to_thread(self._remove, path)

    # --- in a thread ---

    def _sync(self) -> None:
        pending = list(self._unsynced)
        _syncfs(self.root)
        for path in pending:
            made = self._note(path)
            if made is not None:
                made.boot = ""
                self._write_note(path, made)
            self._unsynced.discard(path)

    def _find(self, diff_id: Digest, below: Sequence[Path]) -> Path | None:
        lower = LowerLayers(below)
        for note in sorted(self.root.glob(f"{diff_id.hex}*.json")):
            made = self._note(note.with_suffix(""))
            if made is None or not note.with_suffix("").is_dir():
                continue
            if all(_pack(lower.at(_parts(path))) == seen for path, seen in made.parents):
                return note.with_suffix("")
        return None

    def keep(self, tree: Path, diff_id: Digest, filter: LayerFilter) -> Path:
        """Give an unpacked tree its name."""
        parents = sorted((_shown(p), _pack(b)) for p, b in filter.parents.items())
        name = diff_id.hex
        if any(below for _, below in parents):
            name += "." + hashlib.sha256(msgspec.json.encode(parents)).hexdigest()[:12]
        path = self.root / name
        made = Made(str(diff_id), self._boot, filter.bytes, parents)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)  # without its note: a removal that was cut short
        os.rename(tree, path)
        self._write_note(path, made)
        self._unsynced.add(path)
        return path

    def _note(self, path: Path) -> Made | None:
        try:
            return msgspec.json.decode(_note_path(path).read_bytes(), type=Made)
        except (OSError, msgspec.DecodeError):
            return None

    def _write_note(self, path: Path, made: Made) -> None:
        temporary = path.with_name(path.name + ".note")
        temporary.write_bytes(msgspec.json.encode(made))
        os.replace(temporary, _note_path(path))

    def _remove(self, path: Path) -> None:
        _note_path(path).unlink(missing_ok=True)
        gone = path.with_name(f"{secrets.token_hex(8)}.tmp")
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, gone)
            shutil.rmtree(gone, ignore_errors=True)
        self._unsynced.discard(path)


def _syncfs(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), "syncfs")
    finally:
        os.close(fd)


def _note_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _shown(parts: Parts) -> str:
    return b"/".join(parts).decode("utf-8", "surrogateescape").encode("unicode_escape").decode()


def _parts(shown: str) -> Parts:
    text = shown.encode().decode("unicode_escape")
    return tuple(text.encode("utf-8", "surrogateescape").split(b"/"))


def _pack(below: Below | None) -> tuple[bool, int, int, int, int, str | None] | None:
    if below is None:
        return None
    link = None if below.link is None else below.link.decode("latin-1")
    return below.directory, below.mode, below.uid, below.gid, below.mtime, link
