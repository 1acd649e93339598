"""When each clock is due: a heap of instants, without tasks and without a clock of its own.

Ticks are anchored: the k-th is at ``base + k * period``, however late the ones before were
dispatched, so nothing drifts and the phase survives restarts. Ticks that were missed (the node was
down, the machine slept, somebody set the clock forward) are decided by the spell's catch-up policy
when the first of them comes up.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import NamedTuple

from leasehold.node.spells.trigger import TriggerConfig, first_tick

GRACE = 5.0
"""Seconds a tick may be late and still count as on time for ``catch_up = none``."""

MAX_CATCH_UP = 100
"""Most missed ticks fired for ``catch_up = all``; older ones are dropped."""


class Fire(NamedTuple):
    """``spell`` is due since ``due`` (Unix seconds)."""

    spell: str
    due: float


@dataclass(slots=True)
class _Clock:
    base: float
    period: int
    end: int
    catch_up: str
    next: float
    fired: bool
    generation: int


class Schedule:
    """At most one clock a spell; arming again replaces it."""

    def __init__(self) -> None:
        self._clocks: dict[str, _Clock] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._generation = 0

    def __contains__(self, spell: str) -> bool:
        return spell in self._clocks

    def __len__(self) -> int:
        return len(self._clocks)

    def arm(
        self,
        spell: str,
        config: TriggerConfig,
        *,
        armed_at: float,
        now: float,
        last: float | None = None,
    ) -> bool:
        """Arm the clock of ``spell``, or disarm it when ``config`` has none that can still fire.

        ``armed_at`` is when this configuration was set, ``last`` the tick it fired last. Returns
        whether a clock is armed.
        """
        self.disarm(spell)
        base = first_tick(config.clock, armed_at)
        if base is None:
            return False
        period, end = config.clock.period_sec, config.clock.end_sec
        due = base
        if last is not None:
            if period == 0:
                return False
            # A tick recorded in the future: the clock was set back since. Go on from now.
            due = _after(base, period, min(last, now))
        if end and due >= end and not (due == base and last is None):
            return False
        if end and end <= now:
            return False
        self._generation += 1
        self._clocks[spell] = _Clock(
            base, period, end, config.catch_up, due, last is not None, self._generation
        )
        heapq.heappush(self._heap, (due, self._generation, spell))
        return True

    def disarm(self, spell: str) -> None:
        """Forget the clock of ``spell``; unknown spells are fine."""
        self._clocks.pop(spell, None)
        if len(self._heap) > 64 and len(self._heap) > 4 * len(self._clocks):
            # Entries of replaced clocks are skipped when they come up; far ones would pile up.
            self._heap = [(c.next, c.generation, s) for s, c in self._clocks.items()]
            heapq.heapify(self._heap)

    def next_due(self) -> float | None:
        """The earliest instant at which :meth:`pop` has something to do."""
        while self._heap:
            due, generation, spell = self._heap[0]
            clock = self._clocks.get(spell)
            if clock is not None and clock.generation == generation and clock.next == due:
                return due
            heapq.heappop(self._heap)
        return None

    def pop(self, now: float) -> list[Fire]:
        """Everything due at ``now``, earliest first; periodic clocks move on to their next tick."""
        fires: list[Fire] = []
        while (due := self.next_due()) is not None and due <= now:
            _, generation, spell = heapq.heappop(self._heap)
            clock = self._clocks[spell]
            fires.extend(Fire(spell, tick) for tick in _ticks(clock, due, now))
            clock.fired = True
            following = _after(clock.base, clock.period, max(due, now)) if clock.period else None
            if following is None or (clock.end and clock.end <= following):
                del self._clocks[spell]
                continue
            clock.next = following
            heapq.heappush(self._heap, (following, generation, spell))
        fires.sort(key=lambda fire: fire.due)
        return fires

    def set_back(self, now: float) -> None:
        """Somebody set the clock back to ``now``: periodic clocks that are running go on from
        here instead of waiting until the old time comes again."""
        for clock in self._clocks.values():
            if clock.fired and clock.period:
                clock.next = min(clock.next, _after(clock.base, clock.period, now))
        self._heap = [(c.next, c.generation, s) for s, c in self._clocks.items()]
        heapq.heapify(self._heap)


def _after(base: float, period: int, now: float) -> float:
    """The first tick later than ``now``."""
    tick = base + (math.floor((now - base) / period) + 1) * period
    # Rounding can leave the quotient one off in either direction.
    if tick <= now:
        tick += period
    elif tick - period > now:
        tick -= period
    return tick


def _ticks(clock: _Clock, due: float, now: float) -> list[float]:
    """The ticks in [due, now] that are to be fired."""
    if clock.period == 0:
        late = now - due > GRACE
        return [] if late and clock.catch_up == "none" else [due]
    bound = now if not clock.end else min(now, math.nextafter(clock.end, 0.0))
    missed = max(0, math.floor((bound - due) / clock.period))
    latest = due + missed * clock.period
    if clock.catch_up == "all":
        count = min(missed, MAX_CATCH_UP - 1)
        return [latest - back * clock.period for back in range(count, -1, -1)]
    if clock.catch_up == "none" and now - latest > GRACE:
        return []
    return [latest]
