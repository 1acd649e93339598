"""ULIDs: 48 bits of milliseconds and 80 random bits, 26 characters of Crockford's base 32.

An event id made by :func:`derived` depends only on its key, so that doing the same thing again
(after a crash before the acknowledgement) names the same event and the log keeps one.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_INDEX = {c: i for i, c in enumerate(ALPHABET)}
_PAIRS = [a + b for a in ALPHABET for b in ALPHABET]
_SHIFTS = range(120, -1, -10)


class Entropy:
    """The system's random bytes, fetched by the page: a system call for each id costs more than
    the id. No byte is given out twice, to any thread or forked child."""

    SIZE = 4096

    _page: bytes
    _used: int
    _lock: threading.Lock

    def __init__(self) -> None:
        self.forget()
        os.register_at_fork(after_in_child=self.forget)

    def take(self, count: int) -> bytes:
        """``count`` (at most 4096) fresh random bytes."""
        with self._lock:
            end = self._used + count
            if end > len(self._page):
                self._page, self._used, end = os.urandom(self.SIZE), 0, count
            taken = self._page[self._used : end]
            self._used = end
            return taken

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._page, self._used = b"", 0


entropy = Entropy()


def encode(value: int) -> str:
    """128-bit integer to 26 characters."""
    return "".join([_PAIRS[(value >> shift) & 1023] for shift in _SHIFTS])


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
    bits = rng.getrandbits(80) if rng is not None else int.from_bytes(entropy.take(10), "big")
    return encode((int(at * 1000) & (1 << 48) - 1) << 80 | bits)


def derived(at: float, *key: str) -> str:
    """The ULID that belongs to ``key`` at the time ``at``: the same inputs give the same id."""
    digest = hashlib.sha256("\0".join(key).encode()).digest()
    return encode((int(at * 1000) & (1 << 48) - 1) << 80 | int.from_bytes(digest[:10], "big"))


def time_of(ulid: str) -> float:
    """Seconds UTC at which ``ulid`` was made."""
    return (decode(ulid) >> 80) / 1000
