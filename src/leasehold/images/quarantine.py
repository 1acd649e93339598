"""Holders that let us down, and for how long not to believe that they hold something.

A record may outlive its content and a node its usefulness. What a failed fetch taught is kept per
digest and node, shortly; only a holder that sent wrong bytes is left alone for everything.
"""

from __future__ import annotations

from collections import OrderedDict

from leasehold.core.clock import Clock
from leasehold.model.digest import Digest

SECONDS = {"notfound": 60.0, "error": 10.0, "stall": 30.0, "corrupt": 600.0}
"""How long an outcome counts. A busy node (not listed) is a good one."""

CAPACITY = 16_384


class Quarantine:
    """Who not to ask for what."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: OrderedDict[tuple[str, str], float] = OrderedDict()

    def put(self, digest: Digest, node: str, outcome: str) -> None:
        seconds = SECONDS.get(outcome)
        if seconds is None:
            return
        key = ("" if outcome == "corrupt" else digest, node)
        self._until[key] = self._clock.monotonic() + seconds
        self._until.move_to_end(key)
        while len(self._until) > CAPACITY:
            self._until.popitem(last=False)

    def holds(self, digest: Digest, node: str) -> bool:
        """True while ``node`` is not to be asked for ``digest``."""
        if not self._until:
            return False
        now = self._clock.monotonic()
        for key in ((digest, node), ("", node)):
            until = self._until.get(key)
            if until is not None:
                if now < until:
                    return True
                del self._until[key]
        return False
