"""What makes unpacking a stranger's layer safe: its tar is read here and written anew.

The extractor behind us (``bsdtar --chroot``) never sees a byte of the original headers, only ones
made here, so no difference in how two programs read a malformed archive can be used. On the way

* names lose leading ``/`` and ``./``; ``..`` is refused; symbolic links inside a name are followed
  *as the container would see them* (this layer, then the layers below), so that ``var/run/x``
  with ``var/run -> /run`` lands in ``/run``, as in a merged tree;
* a parent directory the layer does not list is emitted with the owner and mode it has below: made
  up as root 0755 it would hide the real one;
* ``.wh.x`` becomes a character device 0:0 and ``.wh..wh..opq`` a mark on its directory, overlayfs's
  way of saying deleted; device nodes of the layer itself are dropped;
* hard links must point to a file of the same layer: a directory of its own cannot share an inode
  with another;
* sizes, counts and lengths are bounded: a compression bomb ends here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from leasehold.images import tarheader
from leasehold.images.lower import Below, LowerLayers, Parts
from leasehold.images.tarheader import RECORD, Entry, LayerRefused

LINK_HOPS = 40
"""Symbolic links followed in one name, as many as Linux does."""

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
KEPT_XATTRS = (b"user.", b"security.capability")
"""Others would steer overlayfs (trusted.overlay.redirect) or the host's security module."""


class Source(Protocol):
    """The uncompressed layer."""

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes, fewer only at the end."""
        ...

    def copy(self, size: int, write: Callable[[memoryview], object]) -> bool:
        """Hand the next ``size`` bytes to ``write``; False when they end early."""
        ...


class LayerFilter:
    """Reads one layer's tar from ``source`` and gives a safe one to ``write``.

    Afterwards ``opaque`` and ``xattrs`` say what is to be set on the directory tree, and
    ``parents`` what was taken from below (path -> :class:`Below` or None): another image with the
    same answers can use the same directory.
    """

    def __init__(
        self,
        source: Source,
        write: Callable[[bytes | memoryview], object],
        lower: LowerLayers,
        *,
        max_bytes: int,
        max_entries: int,
    ) -> None:
        self._source = source
        self._write = write
        self._lower = lower
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self.entries: dict[Parts, bytes] = {(): b"5"}
        self._links: dict[Parts, bytes] = {}
        self.opaque: set[Parts] = set()
        self.xattrs: dict[Parts, dict[bytes, bytes]] = {}
        self.parents: dict[Parts, Below | None] = {}
        self.bytes = 0
        self.count = 0
        self.dropped = 0

    def run(self) -> None:
        """The whole archive."""
        while (entry := self._next()) is not None:
            self.count += 1
            self.bytes += entry.size
            if self.count > self._max_entries:
                raise LayerRefused(f"more than {self._max_entries} files", code="layer_too_large")
            if self.bytes > self._max_bytes:
                raise LayerRefused(f"more than {self._max_bytes} bytes", code="layer_too_large")
            self._take(entry)
        self._write(bytes(2 * RECORD))

    # --- reading ---

    def _next(self) -> Entry | None:
        name = link = None
        pax: dict[bytes, bytes] = {}
        kind = b""
        while True:
            header = self._source.read(RECORD)
            if not header or header == bytes(RECORD):
                return None
            if len(header) < RECORD:
                raise LayerRefused("the archive ends in the middle of a header")
            fields = tarheader.HEADER.unpack(header)
            tarheader.verify(header, fields[6])
            kind, size = fields[7], tarheader.number(fields[4])
            if size < 0:
                raise LayerRefused("a file has a negative size")
            if kind in b"xgLK":
                body = self._extension(size)
                if kind == b"L":
                    name = body.split(b"\0", 1)[0]
                elif kind == b"K":
                    link = body.split(b"\0", 1)[0]
                elif kind == b"x":
                    pax = tarheader.records(body)
                elif tarheader.records(body).keys() & {b"path", b"linkpath", b"size"}:
                    raise LayerRefused("a global header names a file")
                continue
            break
        if kind == b"S" or any(key.startswith(b"GNU.sparse.") for key in pax):
            raise LayerRefused("it holds a sparse file, which image layers may not")
        if name is None:
            name = tarheader.text(fields[0])
            prefix = tarheader.text(fields[14])
            if prefix and header[257:263] == b"ustar\0":
                name = prefix + b"/" + name
        name = pax.get(b"path", name)
        link = pax.get(b"linkpath", tarheader.text(fields[8]) if link is None else link)
        if b"size" in pax:
            size = tarheader.decimal(pax[b"size"], 1 << 62)
        if kind in (b"\0", b"7"):
            kind = b"5" if name.endswith(b"/") else b"0"
        entry = Entry(
            kind=kind,
            name=name,
            link=link,
            mode=tarheader.number(fields[1]) & 0o7777,
            uid=tarheader.owner_of(pax.get(b"uid"), fields[2]),
            gid=tarheader.owner_of(pax.get(b"gid"), fields[3]),
            size=size if kind == b"0" else 0,
            mtime=tarheader.time_of(pax.get(b"mtime"), fields[5]),
        )
        if size and kind not in (b"0", b"1", b"2", b"3", b"4", b"5", b"6"):
            self._skip(size)  # only a kind nobody defined can have a body besides a file
        for key, value in pax.items():
            attribute = key.removeprefix(b"SCHILY.xattr.")
            if attribute != key and attribute.startswith(KEPT_XATTRS):
                entry.xattrs[attribute] = value
        return entry

    def _extension(self, size: int) -> bytes:
        if size > tarheader.EXTENSION_BYTES:
            raise LayerRefused(f"an extension header of {size} bytes")
        padded = self._source.read(tarheader.padded(size))
        if len(padded) < tarheader.padded(size):
            raise LayerRefused("the archive ends in the middle of a header")
        return padded[:size]

    def _skip(self, size: int) -> None:
        self.bytes += size
        if self.bytes > self._max_bytes:
            raise LayerRefused(f"more than {self._max_bytes} bytes", code="layer_too_large")
        if not self._source.copy(tarheader.padded(size), lambda _: None):
            raise LayerRefused("the archive ends in the middle of a file")

    # --- deciding ---

    def _take(self, entry: Entry) -> None:
        parts = tarheader.split(entry.name)
        base = parts[-1] if parts else b""
        if base.startswith(WHITEOUT):
            self._drop_body(entry)
            self._whiteout(self._resolve(parts[:-1], entry.name), base, entry.name)
            return
        if entry.kind not in (b"0", b"1", b"2", b"5", b"6"):
            self.dropped += 1  # device nodes, and kinds nobody defined
            return
        if not parts:
            if entry.kind != b"5":
                raise LayerRefused("the root is not a directory", entry.name)
        else:
            parent = self._resolve(parts[:-1], entry.name)
            parts = (*parent, base)
        if entry.kind == b"1":
            entry.link = self._hard_link(entry)
        if len(entry.link) > tarheader.NAME_BYTES:
            raise LayerRefused("a link target longer than a path may be", entry.name)
        if self.entries.get(parts) == b"5" and entry.kind != b"5":
            raise LayerRefused("a directory and something else of the same name", entry.name)
        self._emit(parts, entry)

    def _whiteout(self, parent: Parts, base: bytes, name: bytes) -> None:
        if base == OPAQUE:
            self.opaque.add(parent)
            return
        if base.startswith(WHITEOUT + WHITEOUT):
            return  # bookkeeping of aufs
        target = base[len(WHITEOUT) :]
        if target in (b"", b".", b".."):
            raise LayerRefused("a whiteout of nothing, of itself or of its parent", name)
        parts = (*parent, target)
        found = self.entries.get(parts)
        if found is None:
            self._emit(parts, Entry(kind=b"3", mode=0))
        elif found == b"5":
            self.opaque.add(parts)  # deleted below, made anew here

    def _hard_link(self, entry: Entry) -> bytes:
        target = tarheader.split(entry.link)
        if target:
            target = (*self._resolve(target[:-1], entry.name), target[-1])
        found = self.entries.get(target)
        if found is None and self._lower.at(target) is not None:
            raise LayerRefused(
                "a hard link into a layer below; build the image again with its file in the layer",
                entry.name,
            )
        if found not in (b"0", b"1", b"2", b"6"):
            raise LayerRefused("a hard link to something that is not in the layer", entry.name)
        return b"/".join(target)

    def _resolve(self, parts: Parts, name: bytes) -> Parts:
        """The directory ``parts`` is in the container's eyes; missing parents are emitted."""
        todo = list(reversed(parts))
        done: Parts = ()
        hops = 0
        while todo:
            part = todo.pop()
            if part == b"..":  # only out of a link's target: "/.." is "/"
                done = done[:-1]
                continue
            here = (*done, part)
            kind = self.entries.get(here)
            link = self._links.get(here) if kind == b"2" else None
            if kind not in (b"5", b"2"):
                below = None if kind is not None else self._lower.at(here)
                if kind is None:
                    self.parents[here] = below
                link = below.link if below else None
                if link is None:
                    self._parent(here, below)
            if link is None:
                done = here
                continue
            hops += 1
            if hops > LINK_HOPS or len(link) > tarheader.NAME_BYTES:
                raise LayerRefused("too many symbolic links in a name", name)
            if link.startswith(b"/"):
                done = ()
            todo.extend(p for p in reversed(link.split(b"/")) if p not in (b"", b"."))
        return done

    def _parent(self, parts: Parts, below: Below | None) -> None:
        if below is not None and below.directory:
            entry = Entry(b"5", b"", b"", below.mode, below.uid, below.gid, 0, below.mtime)
        else:
            entry = Entry(b"5")
        self.count += 1
        self._emit(parts, entry)

    # --- writing ---

    def _emit(self, parts: Parts, entry: Entry) -> None:
        if self.entries.get(parts) == b"3" and entry.kind == b"5":
            self.opaque.add(parts)  # deleted below, made anew here
        self.entries[parts] = entry.kind
        self._links.pop(parts, None)
        if entry.kind == b"2":
            self._links[parts] = entry.link
        self.xattrs.pop(parts, None)
        if entry.xattrs:
            self.xattrs[parts] = entry.xattrs
        self._write(tarheader.header(b"/".join(parts) or b".", entry))
        if entry.size and not self._source.copy(entry.size, self._write):
            raise LayerRefused("the archive ends in the middle of a file", entry.name)
        padding = tarheader.padded(entry.size) - entry.size
        if padding:
            if len(self._source.read(padding)) < padding:
                raise LayerRefused("the archive ends in the middle of a file", entry.name)
            self._write(bytes(padding))

    def _drop_body(self, entry: Entry) -> None:
        if entry.size:
            self._skip(entry.size)
