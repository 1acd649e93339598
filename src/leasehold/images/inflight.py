"""What this node is fetching from an origin right now. Memory only; a restart forgets it.

A claim is taken before the fetch and given back on every way out of it. Others ask for it by
``pull_intent_query``: what they need is not *when* it began but whether it still moves, so an
entry knows its last progress, and "stalled" means no progress for the stall limit: a slow large
layer is not stalled, a silent small one is.
"""

from __future__ import annotations

from dataclasses import dataclass

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.images.ports import ContentKind
from leasehold.model.digest import Digest

SMALL_STALL = 5.0
"""Seconds: manifests and configs (the original's text; its code gave configs 30)."""

LARGE_STALL = 30.0
"""Seconds: layers of unknown size, three times the floor of ten."""

FLOOR = 10.0
RATE = 50 * 1024 * 1024
"""Bytes a second an origin is expected to give at least."""

FACTOR = 3

IDLE_LIMIT = 10.0
"""Seconds without a byte after which a fetch whose progress we can see counts as stalled."""

PULLS = metrics.gauge("p2p_in_flight_pulls", "Origin pulls under way on this node.")


def stall_limit(kind: ContentKind, size: int | None) -> float:
    """Seconds a fetch of ``size`` bytes may take before others stop waiting for it."""
    if kind is not ContentKind.BLOB:
        return SMALL_STALL
    if not size:
        return LARGE_STALL
    return max(FLOOR, float(size // RATE)) * FACTOR


@dataclass(slots=True)
class Entry:
    """One fetch. ``started_at`` is UTC (for the wire), ``began`` and ``moved`` monotonic."""

    kind: ContentKind
    size: int | None
    started_at: float
    began: float
    moved: float
    received: int = 0


class Claim:
    """The right to fetch a digest, or the knowledge of who has it: ``won`` says which."""

    def __init__(self, flights: InFlight, digest: Digest, entry: Entry, *, won: bool) -> None:
        self._flights = flights
        self._digest = digest
        self.entry = entry
        self.won = won

    def done(self) -> None:
        """Give the claim back; twice, or by a loser, is harmless."""
        if self.won:
            self._flights._release(self._digest, self.entry)


class InFlight:
    """The map. Loop-bound: every method is atomic because none waits."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: dict[Digest, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def start(self, digest: Digest, kind: ContentKind, size: int | None = None) -> Claim:
        """Claim ``digest``; when somebody has it already, that entry comes back."""
        found = self._entries.get(digest)
        if found is not None:
            return Claim(self, digest, found, won=False)
        now = self._clock.monotonic()
        entry = Entry(kind, size, self._clock.now(), now, now)
        self._entries[digest] = entry
        PULLS.inc()
        return Claim(self, digest, entry, won=True)

    def get(self, digest: Digest) -> Entry | None:
        return self._entries.get(digest)

    def progress(self, digest: Digest, received: int, size: int | None = None) -> None:
        """``received`` bytes of ``digest`` are here; only an increase counts as movement."""
        entry = self._entries.get(digest)
        if entry is not None:
            if received > entry.received:
                entry.received, entry.moved = received, self._clock.monotonic()
            entry.size = size or entry.size

    def _release(self, digest: Digest, entry: Entry) -> None:
        if self._entries.get(digest) is entry:
            del self._entries[digest]
            PULLS.dec()
