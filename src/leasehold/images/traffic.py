"""Bytes that came to this node, by minute: from origins, from peers. The last hour, in memory."""

from __future__ import annotations

from collections import deque

import msgspec

from leasehold.core.clock import Clock

MINUTES = 60


class Minute(msgspec.Struct):
    """``at`` is when it began, UTC seconds."""

    at: float
    origin: int = 0
    peers: int = 0


class Traffic:
    """A download is counted when it ends, whatever became of it: its bytes were carried."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._minutes: deque[Minute] = deque(maxlen=MINUTES)

    def add(self, sources: dict[str, int]) -> None:
        """Bytes by source: ``origin`` or ``peer:<node>``."""
        now = self._clock.now() // 60 * 60
        if not self._minutes or self._minutes[-1].at < now:
            self._minutes.append(Minute(now))
        minute = self._minutes[-1]
        for source, count in sources.items():
            if source == "origin":
                minute.origin += count
            elif source.startswith("peer:"):
                minute.peers += count

    def series(self) -> list[Minute]:
        """The last hour, oldest first, minutes without traffic too."""
        now = self._clock.now() // 60 * 60
        had = {minute.at: minute for minute in self._minutes}
        wanted = (now - 60 * ago for ago in reversed(range(MINUTES)))
        return [had.get(at) or Minute(at) for at in wanted]
