"""How often an owner may send manifests: a token bucket each, for a bounded number of owners."""

from __future__ import annotations

from collections import OrderedDict

OWNERS = 10_000
"""Owners remembered; one forgotten starts again with a full bucket."""


class OwnerRate:
    """``rate`` a second in the long run, ``burst`` at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate = rate
        self.burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allow(self, owner: str, now: float) -> bool:
        """Take one token; False when there is none. ``now`` is monotonic seconds."""
        level, at = self._buckets.pop(owner, (float(self.burst), now))
        level = min(float(self.burst), level + (now - at) * self.rate)
        allowed = level >= 1.0
        self._buckets[owner] = (level - 1.0 if allowed else level, now)
        if len(self._buckets) > OWNERS:
            self._buckets.popitem(last=False)
        return allowed
