"""The protocol buffers wire format by hand: five small message families need no generator.

Reading walks the fields of a message in one pass; whoever reads picks the numbers it knows and
ignores the others, as the format demands. Everything malformed (a length past the end, a field
number zero, a group, a varint that overflows 64 bits, text that is not UTF-8) raises
:class:`ProtobufError`; nothing is ever allocated from a length a stranger merely claims. What we
write is checked in tests against the standard library of the format, and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator

from leasehold.p2p import varint

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

MAX_DEPTH = 100
"""Nesting the readers of this package would ever see; the format's own default limit."""

Value = int | bytes


class ProtobufError(ValueError):
    """Bytes that are no protocol buffers message."""


def _varint64(data: bytes, at: int) -> tuple[int, int]:
    # Protocol buffers allow ten bytes (negative int32 take them all) and drop bits past 64.
    value = shift = 0
    for position in range(at, min(len(data), at + 10)):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position + 1
        shift += 7
    raise ProtobufError("varint is truncated or longer than ten bytes")


def fields(data: bytes) -> Iterator[tuple[int, int, Value]]:
    """``(number, wire type, value)`` of each field in order; fixed widths come as raw bytes."""
    at, end = 0, len(data)
    while at < end:
        key = data[at]
        if key < 0x80:
            at += 1
        else:
            key, at = _varint64(data, at)
            if key > 0xFFFF_FFFF:
                raise ProtobufError("field number out of range")
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ProtobufError("field number zero")
        value: Value
        if wire == BYTES:
            if at < end and data[at] < 0x80:
                size = data[at]
                at += 1
            else:
                size, at = _varint64(data, at)
            if size > end - at:
                raise ProtobufError("a field runs past the end of its message")
            value = data[at : at + size]
            at += size
        elif wire == VARINT:
            value, at = _varint64(data, at)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
            if size > end - at:
                raise ProtobufError("a field runs past the end of its message")
            value = data[at : at + size]
            at += size
        else:
            raise ProtobufError(f"wire type {wire} is not supported")
        yield number, wire, value


def text(value: Value) -> str:
    """A string field's value."""
    if isinstance(value, int):
        raise ProtobufError("expected text, got a number")
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise ProtobufError("text is not UTF-8") from None


def int32(value: int) -> int:
    """The low 32 bits as a signed number, as every implementation truncates them."""
    value &= 0xFFFF_FFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def int64(value: int) -> int:
    """The 64 bits as a signed number."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _key(number: int, wire: int) -> bytes:
    return varint.encode(number << 3 | wire)


def put_bytes(number: int, value: bytes) -> bytes:
    """A length-delimited field, also when empty."""
    return _key(number, BYTES) + varint.encode(len(value)) + value


def put_text(number: int, value: str) -> bytes:
    """A string field; nothing when empty, as proto3 writes it."""
    return put_bytes(number, value.encode()) if value else b""


def put_int(number: int, value: int) -> bytes:
    """An integer, enum or boolean field; nothing when zero, as proto3 writes it."""
    if not value:
        return b""
    if value < 0:
        value += 1 << 64
        out = bytearray(_key(number, VARINT))
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
        return bytes(out)
    return _key(number, VARINT) + varint.encode(value)
