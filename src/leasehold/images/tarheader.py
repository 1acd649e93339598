"""The records of a tar archive: reading what a stranger wrote, writing our own.

Reading refuses whatever two programs might understand differently; writing uses only what all
understand the same (ustar with the GNU way of long names, which is free of charsets).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.images.lower import Parts

RECORD = 512
NAME_BYTES = 4096
"""Longest name or link target, Linux's PATH_MAX."""

COMPONENT_BYTES = 255
"""Longest file name, Linux's NAME_MAX."""

EXTENSION_BYTES = 1024 * 1024
"""Longest PAX or GNU extension header; xattrs included."""

HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12s")


class LayerRefused(LeaseholdError):
    """The layer's content is hostile or cannot be represented; ``got`` is the offending name."""

    def __init__(self, why: str, name: bytes = b"", code: str = "layer_refused") -> None:
        shown = name[:200].decode(errors="backslashreplace")
        super().__init__(
            code, f"the layer cannot be unpacked: {why}", kind=Kind.INVALID, got=shown or None
        )


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
        HEADER.pack(
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
        + bytes(padded(len(body)) - len(body))
    )


def split(name: bytes) -> Parts:
    """A name's components, without "." and empty ones; ".." and what is too long is refused."""
    if len(name) > NAME_BYTES or b"\0" in name:
        raise LayerRefused("a name longer than a path may be", name)
    parts = tuple(p for p in name.split(b"/") if p not in (b"", b"."))
    if b".." in parts:
        raise LayerRefused("a name that leaves the layer by '..'", name)
    if any(len(p) > COMPONENT_BYTES for p in parts):
        raise LayerRefused("a file name longer than 255 bytes", name)
    return parts


def padded(size: int) -> int:
    """``size`` rounded up to whole records."""
    return -(-size // RECORD) * RECORD


def text(raw: bytes) -> bytes:
    """A field up to its first zero byte."""
    return raw.split(b"\0", 1)[0]


def _octal(value: int, width: int) -> bytes:
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    # Base 256: the first bit says so, negative numbers fill with ones.
    raw = value.to_bytes(width - 1, "big", signed=True)
    return (b"\xff" if value < 0 else b"\x80") + raw


def number(raw: bytes) -> int:
    """A numeric field: octal, or base 256; refuses anything else."""
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


def decimal(raw: bytes, limit: int = (1 << 32) - 1) -> int:
    """A number of a PAX record."""
    if not raw.isdigit() or len(raw) > 20 or int(raw) > limit:
        raise LayerRefused("a number beyond all bounds")
    return int(raw)


def owner_of(pax: bytes | None, field: bytes) -> int:
    """An owner by its PAX record, else by its header field."""
    value = decimal(pax) if pax is not None else number(field)
    if not 0 <= value < (1 << 32) - 1:
        raise LayerRefused(f"an owner {value}, which Linux does not have")
    return value


def time_of(pax: bytes | None, field: bytes) -> int:
    """A time, whole seconds, by its PAX record, else by its header field."""
    if pax is None:
        return number(field)
    whole = pax.partition(b".")[0]
    digits = whole.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 15:
        raise LayerRefused("a time that is no number")
    return int(whole)


def verify(raw: bytes, stored: bytes) -> None:
    """Refuse a header whose checksum is not the one ``stored`` in it."""
    if sum(raw) - sum(stored) + 8 * 32 != number(stored):
        raise LayerRefused("a header with a wrong checksum: it is no tar archive")


def records(body: bytes) -> dict[bytes, bytes]:
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
