"""The two text forms of bytes libp2p prints: base58 (bitcoin) for peer ids, base32 for CIDs."""

from __future__ import annotations

import base64
import binascii

ALPHABET58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_INDEX58 = {char: value for value, char in enumerate(ALPHABET58)}

MAX_TEXT = 256
"""Characters; base 58 costs time square in its length, and no id of ours is longer."""


def b58encode(data: bytes) -> str:
    number = int.from_bytes(data, "big")
    out = []
    while number:
        number, digit = divmod(number, 58)
        out.append(ALPHABET58[digit])
    zeros = len(data) - len(data.lstrip(b"\0"))
    return "1" * zeros + "".join(reversed(out))


def b58decode(text: str) -> bytes:
    if len(text) > MAX_TEXT:
        raise ValueError("base58 text is too long")
    number = 0
    for char in text:
        try:
            number = number * 58 + _INDEX58[char]
        except KeyError:
            raise ValueError(f"{char!r} is no base58 digit") from None
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")


def b32encode(data: bytes) -> str:
    """Lower case without padding, as CIDs of version 1 are written (without the leading ``b``)."""
    return base64.b32encode(data).decode().rstrip("=").lower()


def b32decode(text: str) -> bytes:
    if len(text) > MAX_TEXT or text != text.lower():
        raise ValueError("not lower-case base32")
    try:
        return base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except binascii.Error:
        raise ValueError("not base32") from None
