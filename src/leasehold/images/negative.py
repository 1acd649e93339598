"""What failed lately, and how long to leave it alone: per digest, in memory, never shared by DHT.

Each failure in a row lengthens the cooldown: 10, 30, 90, 270, 600 seconds. The count outlives the
cooldown, else every failure would be the first; it is forgotten after a success, or when nothing
failed for a while. Answers to others carry the class: an origin that said *no* (401, 404, 429)
says so to everybody, anything else is this node's own trouble.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.images.ports import FailureClass
from leasehold.model.digest import Digest

INITIAL = 10.0
MULTIPLIER = 3.0
LONGEST = 600.0
"""Seconds, factor, seconds: the original's code (its text says 10 s, 30 s, 2 min, 10 min)."""

MEMORY = 3600.0
"""Seconds after its cooldown for which a digest's count of failures is kept."""

CAPACITY = 10_000
"""Digests remembered; the one that failed longest ago is forgotten first."""

ENTRIES = metrics.gauge("p2p_negative_cache_entries", "Digests that failed lately.")
HITS = metrics.counter("p2p_negative_cache_hit_total", "Cooldowns met, by class.", ("class",))
ENTERED = metrics.counter("p2p_negative_cache_enter_total", "Failures noted.", ("class",))


@dataclass(frozen=True, slots=True)
class Cooldown:
    """A failure that still counts. ``remaining`` in seconds; ``until`` UTC, for the wire."""

    failure: FailureClass
    remaining: float
    until: float
    failures: int


@dataclass(slots=True)
class _Entry:
    failure: FailureClass
    failures: int
    over: float


class NegativeCache:
    """``initial``, ``longest``: seconds; ``multiplier`` from one step to the next."""

    def __init__(
        self,
        clock: Clock,
        *,
        initial: float = INITIAL,
        multiplier: float = MULTIPLIER,
        longest: float = LONGEST,
    ) -> None:
        self._clock = clock
        self._initial, self._multiplier, self._longest = initial, multiplier, longest
        self._entries: OrderedDict[Digest, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def failed(self, digest: Digest, failure: FailureClass) -> Cooldown:
        """Note a failure; the cooldown that begins now."""
        now = self._clock.monotonic()
        entry = self._entries.pop(digest, None)
        if entry is None or now - entry.over > MEMORY:
            entry = _Entry(failure, 0, now)
        entry.failure = failure
        entry.failures += 1
        step = self._initial * self._multiplier ** min(entry.failures - 1, 64)
        entry.over = now + min(self._longest, step)
        self._entries[digest] = entry
        while len(self._entries) > CAPACITY:
            self._entries.popitem(last=False)
        ENTERED.labels(failure.name.lower()).inc()
        ENTRIES.set(len(self._entries))
        return self._cooldown(entry, now)

    def lookup(self, digest: Digest) -> Cooldown | None:
        """The cooldown under way, or None. An expired one keeps its count for the next failure."""
        entry = self._entries.get(digest)
        if entry is None:
            return None
        now = self._clock.monotonic()
        if now < entry.over:
            return self._cooldown(entry, now)
        if now - entry.over > MEMORY:
            del self._entries[digest]
            ENTRIES.set(len(self._entries))
        return None

    def cooling(self) -> list[tuple[Digest, Cooldown]]:
        """Cooldowns under way, the newest failure first."""
        now = self._clock.monotonic()
        return [
            (digest, self._cooldown(entry, now))
            for digest, entry in reversed(self._entries.items())
            if now < entry.over
        ]

    def hit(self, digest: Digest) -> Cooldown | None:
        """:meth:`lookup` for somebody who wanted to fetch: counts what it saved the origin."""
        found = self.lookup(digest)
        if found is not None:
            HITS.labels(found.failure.name.lower()).inc()
        return found

    def succeeded(self, digest: Digest) -> None:
        """Forget ``digest``: it is here."""
        if self._entries.pop(digest, None) is not None:
            ENTRIES.set(len(self._entries))

    def _cooldown(self, entry: _Entry, now: float) -> Cooldown:
        remaining = entry.over - now
        return Cooldown(entry.failure, remaining, self._clock.now() + remaining, entry.failures)
