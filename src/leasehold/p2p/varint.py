"""Unsigned LEB128 varints, at most nine bytes (63 bits) as multiformats demand.

Decoders never wait: they say how many bytes they used, or that more are needed, or raise.
"""

from __future__ import annotations

MAX_BYTES = 9
"""Multiformats' limit. A tenth byte is an overflow, which callers treat as "too large"."""


class VarintError(ValueError):
    """Not a varint: it does not end within nine bytes."""


def encode(value: int) -> bytes:
    """``value`` (0 .. 2**63-1) in as few bytes as possible."""
    if value < 0x80:
        if value < 0:
            raise ValueError(f"varints are not negative: {value}")
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode(data: bytes | bytearray | memoryview, at: int = 0) -> tuple[int, int] | None:
    """``(value, position after it)``, or None when ``data`` ends inside the varint."""
    end = len(data)
    if at < end and data[at] < 0x80:
        return data[at], at + 1
    value = shift = 0
    for position in range(at, min(end, at + MAX_BYTES)):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
        shift += 7
    if end - at >= MAX_BYTES:
        raise VarintError(f"varint longer than {MAX_BYTES} bytes")
    return None
