"""W3: the original drops signals silently, and a repo sleeps until its next event.

Here a log that loses signals, repeats them, and ends its stream. With ``Engine._resync`` taken out
the first test fails: entities of which every signal was lost stay asleep.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import ClassVar

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import unavailable
from leasehold.core.service import running
from leasehold.events.event import Entity, Event, NewEvent, Signal, Subscribed
from leasehold.events.log import ANY
from leasehold.events.memory import MemoryLog
from leasehold.observe.activity import Activity, Outcome
from leasehold.observe.engine import Engine


class Lossy(MemoryLog):
    def __init__(self, clock: VirtualClock, seed: int, lost: float) -> None:
        super().__init__(clock)
        self.rng = random.Random(seed)
        self.lost = lost

    async def signals(self, after_seq: int | None = None) -> AsyncIterator[Signal | Subscribed]:
        async for item in super().signals(after_seq):
            if isinstance(item, Subscribed):
                yield item
                continue
            chance = self.rng.random()
            if chance < self.lost:
                continue
            yield item
            if chance > 0.95:
                yield item
            if chance > 0.99:
                raise unavailable("gone", "the stream broke")


class Count(Activity):
    name: ClassVar[str] = "count"
    entity_kind: ClassVar[str] = "thing"
    counts: ClassVar[dict[str, int]] = {}

    def fold(self, event: Event) -> None:
        self.counts[self.entity.id] = int(event.id)

    async def settle(self) -> Outcome:
        return Outcome.SLEEP


@pytest.mark.parametrize("lost", [1.0, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_every_entity_sees_its_last_event(seed: int, lost: float) -> None:
    clock = VirtualClock()
    Count.counts.clear()

    async def main() -> None:
        log = Lossy(clock, seed, lost)
        engine = Engine(log, clock)
        engine.register(Count)
        rng = random.Random(seed)
        async with running(engine):
            newest: dict[str, int] = {}
            for n in range(500):
                id = str(rng.randrange(50))
                newest[id] = n
                await log.append(Entity("thing", id), ANY, [NewEvent(str(n), "t", b"{}")])
                await clock.sleep(rng.expovariate(20))
            await clock.sleep(60)
            assert Count.counts == newest

    clock.run(main)
