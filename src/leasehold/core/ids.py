"""ULIDs: 48 bits of milliseconds and 80 random bits, 26 characters of Crockford's base 32.

An event id made by :func:`derived` depends only on its key, so that doing the same thing again
(after a crash before the acknowledgement) names the same event and the log keeps one.
"""

from __future__ import annotations

import hashlib
import random
import secrets

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_INDEX = {c: i for i, c in enumerate(ALPHABET)}


def encode(value: int) -> str:
    """128-bit integer to 26 characters."""
    return "".join(ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))


def decode(text: str) -> int:
    """26 characters to a 128-bit integer; ``ValueError`` when it is no ULID."""
    if len(text) != 26 or text[0] > "7":
        raise ValueError(f"not a ULID: {text!r}")
    value = 0
    for char in text:
        try:
            value = value << 5 | _INDEX[char]
        except KeyError:
            raise ValueError(f"not a ULID: {text!r}") from None
    return value


def new(at: float, rng: random.Random | None = None) -> str:
    """A fresh ULID for the time ``at`` (seconds UTC); ``rng`` only for reproducible runs."""
    entropy = rng.getrandbits(80) if rng is not None else secrets.randbits(80)
    return encode((int(at * 1000) & (1 << 48) - 1) << 80 | entropy)


def derived(at: float, *key: str) -> str:
    """The ULID that belongs to ``key`` at the time ``at``: the same inputs give the same id."""
    digest = hashlib.sha256("\0".join(key).encode()).digest()
    return encode((int(at * 1000) & (1 << 48) - 1) << 80 | int.from_bytes(digest[:10], "big"))


def time_of(ulid: str) -> float:
    """Seconds UTC at which ``ulid`` was made."""
    return (decode(ulid) >> 80) / 1000
