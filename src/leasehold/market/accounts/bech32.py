"""Bech32 (BIP 173): the text form of addresses, with a checksum that catches typing mistakes.

Only the classic constant is used; bech32m belongs to another chain family.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from operator import xor

_CHARSET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_INDEX = {c: i for i, c in enumerate(_CHARSET)}
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)

_FACTORS = [
    reduce(xor, (factor for i, factor in enumerate(_GENERATOR) if top >> i & 1), 0)
    for top in range(32)
]
"""What the checksum takes in for each value that falls out at its top."""

MAX_LENGTH = 90
"""Characters; BIP 173."""


def encode(prefix: str, data: bytes) -> str:
    """``prefix`` and any bytes (20 for an address) to text."""
    values = _regroup(data, 8, 5, pad=True)
    polymod = _polymod([*_expand(prefix), *values, 0, 0, 0, 0, 0, 0]) ^ 1
    checksum = [(polymod >> 5 * (5 - i)) & 31 for i in range(6)]
    return f"{prefix}1" + "".join(_CHARSET[v] for v in [*values, *checksum])


def decode(text: str) -> tuple[str, bytes]:
    """``(prefix, bytes)``; ``ValueError`` saying what is wrong."""
    if len(text) > MAX_LENGTH:
        raise ValueError("longer than 90 characters")
    if text.lower() != text and text.upper() != text:
        raise ValueError("mixes upper and lower case")
    prefix, one, rest = text.lower().rpartition("1")
    if not one or not prefix or len(rest) < 6:
        raise ValueError("has no separator 1")
    if not all(33 <= ord(c) <= 126 for c in prefix):
        raise ValueError("has an unprintable prefix")
    try:
        values = [_INDEX[c] for c in rest]
    except KeyError as error:
        raise ValueError(f"character {error.args[0]!r} is not of the alphabet") from None
    if _polymod([*_expand(prefix), *values]) != 1:
        raise ValueError("the checksum is wrong")
    return prefix, bytes(_regroup(values[:-6], 5, 8, pad=False))


def _expand(prefix: str) -> list[int]:
    return [*(ord(c) >> 5 for c in prefix), 0, *(ord(c) & 31 for c in prefix)]


def _polymod(values: Iterable[int]) -> int:
    check = 1
    for value in values:
        check = (check & 0x1FFFFFF) << 5 ^ value ^ _FACTORS[check >> 25]
    return check


def _regroup(values: Iterable[int], width: int, into: int, *, pad: bool) -> list[int]:
    held = bits = 0
    out: list[int] = []
    for value in values:
        held = held << width | value
        bits += width
        while bits >= into:
            bits -= into
            out.append(held >> bits & (1 << into) - 1)
        held &= (1 << bits) - 1
    if pad and bits:
        out.append(held << into - bits & (1 << into) - 1)
    elif not pad and (bits >= width or held):
        raise ValueError("the padding is wrong")
    return out
