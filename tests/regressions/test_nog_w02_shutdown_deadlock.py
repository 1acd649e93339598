"""W2: the original waits for runs with the mutex that a finishing run needs.

With ``drain_s`` taken out of ``Engine.stop`` the run that ignores its time holds the shutdown until
the service's own last deadline, twice as long.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from leasehold.core.clock import VirtualClock
from leasehold.core.service import running
from leasehold.events.event import Entity, Event, NewEvent
from leasehold.events.memory import MemoryLog
from leasehold.observe.activity import Activity, Outcome
from leasehold.observe.engine import Engine
from leasehold.observe.settings import ObserveSettings


class Slow(Activity):
    name: ClassVar[str] = "slow"
    entity_kind: ClassVar[str] = "thing"
    ended: ClassVar[list[str]] = []

    def fold(self, event: Event) -> None: ...

    async def settle(self) -> Outcome:
        seconds = float(self.entity.id)
        try:
            await asyncio.sleep(seconds)
            self.ended.append("finished")
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        return Outcome.SLEEP


def test_runs_in_flight_end_within_the_deadline() -> None:
    clock = VirtualClock()

    async def main() -> None:
        log = MemoryLog(clock)
        for seconds in ("2", "1000000"):
            await log.append(Entity("thing", seconds), None, [NewEvent("1", "t", b"{}")])
        engine = Engine(log, clock, ObserveSettings(drain_s=5.0))
        engine.register(Slow)
        async with running(engine):
            await clock.sleep(0.1)
            asked = clock.monotonic()
        assert clock.monotonic() - asked < 6.0
        assert Slow.ended == ["finished", "cancelled"]

    clock.run(main)
