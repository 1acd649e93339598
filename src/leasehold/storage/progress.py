"""How far the work on a volume's files is, in bytes: for people who wait, in memory only.

The thread that copies, packs or restores counts into a :class:`Tally`; whoever is curious reads it.
A count is a hint: what became of the work is in the log.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import msgspec

Tell = Callable[[int], object]
"""Told how many more bytes are done."""


def untold(count: int) -> None:
    """Nobody is curious."""


class Far(msgspec.Struct, frozen=True):
    """``done`` of ``total`` bytes; a total of 0 is not known."""

    what: str
    done: int
    total: int


class Tally:
    """One piece of work; used by one thread."""

    def __init__(self, what: str = "") -> None:
        self.what = what
        self.done = 0
        self.total = 0

    def expect(self, total: int) -> None:
        """So many bytes more are to be done."""
        self.total += total

    def add(self, count: int) -> None:
        """So many bytes more are done."""
        self.done += count


class Progress:
    """The work under way, one piece a volume: never more than there are threads for it."""

    def __init__(self) -> None:
        self._tallies: dict[str, Tally] = {}

    @contextlib.contextmanager
    def of(self, repo: str, what: str) -> Iterator[Tally]:
        """Count into the tally while the block runs."""
        tally = self._tallies[repo] = Tally(what)
        try:
            yield tally
        finally:
            self._tallies.pop(repo, None)

    def all(self) -> dict[str, Far]:
        """How far each volume's work is, by repo."""
        return {r: Far(t.what, t.done, t.total) for r, t in dict(self._tallies).items()}
