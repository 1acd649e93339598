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

import functools
import os
import stat
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from leasehold.core.errors import Kind, LeaseholdError

RECORD = 512
NAME_BYTES = 4096
"""Longest name or link target, Linux's PATH_MAX."""

COMPONENT_BYTES = 255
"""Longest file name, Linux's NAME_MAX."""

EXTENSION_BYTES = 1024 * 1024
"""Longest PAX or GNU extension header; xattrs included."""

LINK_HOPS = 40
"""Symbolic links followed in one name, as many as Linux does."""

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
KEPT_XATTRS = (b"user.", b"security.capability")
"""Others would steer overlayfs (trusted.overlay.redirect) or the host's security module."""

_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12s")

Parts = tuple[bytes, ...]


class LayerRefused(LeaseholdError):
    """The layer's content is hostile or cannot be represented; ``got`` is the offending name."""

    def __init__(self, why: str, name: bytes = b"", code: str = "layer_refused") -> None:
        shown = name[:200].decode(errors="backslashreplace")
        super().__init__(
            code, f"the layer cannot be unpacked: {why}", kind=Kind.INVALID, got=shown or None
        )


class Source(Protocol):
    """The uncompressed layer."""

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes, fewer only at the end."""
        ...

    def copy(self, size: int, write: Callable[[memoryview], object]) -> bool:
        """Hand the next ``size`` bytes to ``write``; False when they end early."""
        ...


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


@dataclass(slots=True)
class Entry:
    """One member of the archive as it is written out."""

    kind: bytes
    name: bytes = b""
    link: bytes = b""
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


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
            fields = _HEADER.unpack(header)
            _verify(header, fields[6])
            kind, size = fields[7], _number(fields[4])
            if size < 0:
                raise LayerRefused("a file has a negative size")
            if kind in b"xgLK":
                body = self._extension(size)
                if kind == b"L":
                    name = body.split(b"\0", 1)[0]
                elif kind == b"K":
                    link = body.split(b"\0", 1)[0]
                elif kind == b"x":
                    pax = _records(body)
                elif _records(body).keys() & {b"path", b"linkpath", b"size"}:
                    raise LayerRefused("a global header names a file")
                continue
            break
        if kind == b"S" or any(key.startswith(b"GNU.sparse.") for key in pax):
            raise LayerRefused("it holds a sparse file, which image layers may not")
        if name is None:
            name = _text(fields[0])
            prefix = _text(fields[14])
            if prefix and header[257:263] == b"ustar\0":
                name = prefix + b"/" + name
        name = pax.get(b"path", name)
        link = pax.get(b"linkpath", _text(fields[8]) if link is None else link)
        if b"size" in pax:
            size = _decimal(pax[b"size"], 1 << 62)
        if kind in (b"\0", b"7"):
            kind = b"5" if name.endswith(b"/") else b"0"
        entry = Entry(
            kind=kind,
            name=name,
            link=link,
            mode=_number(fields[1]) & 0o7777,
            uid=_owner(_decimal(pax[b"uid"]) if b"uid" in pax else _number(fields[2])),
            gid=_owner(_decimal(pax[b"gid"]) if b"gid" in pax else _number(fields[3])),
            size=size if kind == b"0" else 0,
            mtime=_seconds(pax[b"mtime"]) if b"mtime" in pax else _number(fields[5]),
        )
        if size and kind not in (b"0", b"1", b"2", b"3", b"4", b"5", b"6"):
            self._skip(size)  # only a kind nobody defined can have a body besides a file
        for key, value in pax.items():
            attribute = key.removeprefix(b"SCHILY.xattr.")
            if attribute != key and attribute.startswith(KEPT_XATTRS):
                entry.xattrs[attribute] = value
        return entry

    def _extension(self, size: int) -> bytes:
        if size > EXTENSION_BYTES:
            raise LayerRefused(f"an extension header of {size} bytes")
        padded = self._source.read(_padded(size))
        if len(padded) < _padded(size):
            raise LayerRefused("the archive ends in the middle of a header")
        return padded[:size]

    def _skip(self, size: int) -> None:
        self.bytes += size
        if self.bytes > self._max_bytes:
            raise LayerRefused(f"more than {self._max_bytes} bytes", code="layer_too_large")
        if not self._source.copy(_padded(size), lambda _: None):
            raise LayerRefused("the archive ends in the middle of a file")

    # --- deciding ---

    def _take(self, entry: Entry) -> None:
        parts = _split(entry.name)
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
        if len(entry.link) > NAME_BYTES:
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
        target = _split(entry.link)
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
            if hops > LINK_HOPS or len(link) > NAME_BYTES:
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
        self._write(header(b"/".join(parts) or b".", entry))
        if entry.size and not self._source.copy(entry.size, self._write):
            raise LayerRefused("the archive ends in the middle of a file", entry.name)
        padding = _padded(entry.size) - entry.size
        if padding:
            if len(self._source.read(padding)) < padding:
                raise LayerRefused("the archive ends in the middle of a file", entry.name)
            self._write(bytes(padding))

    def _drop_body(self, entry: Entry) -> None:
        if entry.size:
            self._skip(entry.size)


def header(name: bytes, entry: Entry) -> bytes:
    """The records that introduce ``entry``; long names the GNU way, which is free of charsets."""
    out = b""
    link = entry.link if entry.kind in b"12" else b""
    if len(link) > 100:
        out += _long(b"K", link)
    if len(name) > 100:
        out += _long(b"L", name)
    return out + _record(name[:100], link[:100], entry)


def _record(name: bytes, link: bytes, entry: Entry) -> bytes:
    raw = bytearray(
        _HEADER.pack(
            name,
            _octal(entry.mode, 8),
            _octal(entry.uid, 8),
            _octal(entry.gid, 8),
            _octal(entry.size, 12),
            _octal(entry.mtime, 12),
            b" " * 8,
            entry.kind,
            link,
            b"ustar  \0",
            b"",
            b"",
            _octal(0, 8),
            _octal(0, 8),
            b"",
            b"",
        )
    )
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def _long(kind: bytes, text: bytes) -> bytes:
    body = text + b"\0"
    return (
        _record(b"././@LongLink", b"", Entry(kind, mode=0, size=len(body)))
        + body
        + bytes(_padded(len(body)) - len(body))
    )


def _split(name: bytes) -> Parts:
    if len(name) > NAME_BYTES or b"\0" in name:
        raise LayerRefused("a name longer than a path may be", name)
    parts = tuple(p for p in name.split(b"/") if p not in (b"", b"."))
    if b".." in parts:
        raise LayerRefused("a name that leaves the layer by '..'", name)
    if any(len(p) > COMPONENT_BYTES for p in parts):
        raise LayerRefused("a file name longer than 255 bytes", name)
    return parts


def _padded(size: int) -> int:
    return -(-size // RECORD) * RECORD


def _text(raw: bytes) -> bytes:
    return raw.split(b"\0", 1)[0]


def _octal(value: int, width: int) -> bytes:
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    # Base 256: the first bit says so, negative numbers fill with ones.
    raw = value.to_bytes(width - 1, "big", signed=True)
    return (b"\xff" if value < 0 else b"\x80") + raw


def _number(raw: bytes) -> int:
    if raw[0] & 0x80:
        value = int.from_bytes(raw[1:], "big", signed=raw[0] == 0xFF)
        if abs(value) > 1 << 62:
            raise LayerRefused("a number beyond all bounds")
        return value
    text = raw.replace(b"\0", b" ").strip()
    if not text:
        return 0
    try:
        return int(text, 8)
    except ValueError:
        raise LayerRefused("a header that is no tar header") from None


def _decimal(raw: bytes, limit: int = (1 << 32) - 1) -> int:
    if not raw.isdigit() or len(raw) > 20 or int(raw) > limit:
        raise LayerRefused("a number beyond all bounds")
    return int(raw)


def _owner(value: int) -> int:
    if not 0 <= value < (1 << 32) - 1:
        raise LayerRefused(f"an owner {value}, which Linux does not have")
    return value


def _seconds(raw: bytes) -> int:
    whole = raw.partition(b".")[0]
    digits = whole.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 15:
        raise LayerRefused("a time that is no number")
    return int(whole)


def _verify(raw: bytes, stored: bytes) -> None:
    if sum(raw) - sum(stored) + 8 * 32 != _number(stored):
        raise LayerRefused("a header with a wrong checksum: it is no tar archive")


def _records(body: bytes) -> dict[bytes, bytes]:
    """PAX records: ``<length> <key>=<value>\\n``."""
    out: dict[bytes, bytes] = {}
    while body:
        digits, space, _ = body[:12].partition(b" ")
        if not space or not digits.isdigit():
            raise LayerRefused("a malformed extension header")
        length = int(digits)
        record = body[len(digits) + 1 : length]
        if length > len(body) or length < len(digits) + 3 or not record.endswith(b"\n"):
            raise LayerRefused("a malformed extension header")
        key, equals, value = record[:-1].partition(b"=")
        if not equals:
            raise LayerRefused("a malformed extension header")
        out[key] = value
        body = body[length:]
    return out
