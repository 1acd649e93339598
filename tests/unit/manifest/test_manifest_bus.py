"""The bus: order, no replay for newcomers, clones, closing that cascades."""

from __future__ import annotations

import asyncio

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.events.event import Entity, Event, NewEvent
from leasehold.events.log import ANY
from leasehold.events.memory import MemoryLog
from leasehold.manifest.bus import Bus, Subscription
from leasehold.model.events.market import OrderClosed
from leasehold.model.market import OrderId


class World:
    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.log = MemoryLog(clock)
        self.bus = Bus(self.log, clock=clock)

    async def publish(self, *numbers: int) -> None:
        for n in numbers:
            payload = OrderClosed(id=OrderId("o", n, 1, 1), height=n)
            # Many entities: the order is that of the log, not of one entity.
            entity = Entity("order", f"o/{n % 3}/1/1")
            await self.log.append(entity, ANY, [NewEvent.of(payload, clock=self.clock)])

    async def take(self, subscription: Subscription, count: int) -> list[int]:
        async def read() -> list[int]:
            out: list[int] = []
            while len(out) < count:
                event: Event = await anext(subscription)
                out.append(event.payload.height)
            return out

        return await asyncio.wait_for(read(), 60)

    async def nothing(self, subscription: Subscription) -> None:
        with pytest.raises((TimeoutError, StopAsyncIteration)):
            await asyncio.wait_for(anext(subscription), 60)


def test_an_event_before_subscribing_is_not_delivered(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = World(virtual)
        async with running(w.bus):
            await w.publish(1)
            await virtual.sleep(1)
            late = w.bus.subscribe()
            await w.nothing(late)

    virtual.run(main)


def test_everyone_gets_everything_in_the_same_order(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = World(virtual)
        async with running(w.bus):
            first, second = w.bus.subscribe(), w.bus.subscribe()
            await w.publish(*range(1, 1201))
            assert await w.take(first, 1200) == list(range(1, 1201))
            # A slow reader was not in anybody's way and lost nothing.
            assert await w.take(second, 1200) == list(range(1, 1201))

    virtual.run(main)


def test_a_closed_subscriber_gets_nothing_and_a_stopped_bus_refuses(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = World(virtual)
        async with running(w.bus):
            one = w.bus.subscribe()
            await w.publish(1, 2)
            assert await w.take(one, 1) == [1]
            one.close()
            one.close()
            await w.nothing(one)
            left = w.bus.subscribe()
        with pytest.raises(LeaseholdError):
            w.bus.subscribe()
        await w.nothing(left)
        assert left.done.is_set()

    virtual.run(main)


def test_a_clone_sees_what_its_parent_has_not_handed_out(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = World(virtual)
        async with running(w.bus):
            parent = w.bus.subscribe()
            await w.publish(1, 2, 3)
            assert await w.take(parent, 1) == [1]
            clone = parent.clone()
            await w.publish(4)
            assert await w.take(parent, 3) == [2, 3, 4]
            assert await w.take(clone, 3) == [2, 3, 4]
            parent.close()
            assert clone.done.is_set()
            await w.nothing(clone)
            with pytest.raises(LeaseholdError):
                parent.clone()

    virtual.run(main)


def test_closing_a_clone_leaves_its_parent(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = World(virtual)
        async with running(w.bus):
            parent = w.bus.subscribe()
            clone = parent.clone()
            clone.close()
            await w.publish(1)
            assert await w.take(parent, 1) == [1]

    virtual.run(main)


def test_a_reader_that_waits_ends_when_it_is_closed(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = World(virtual)
        async with running(w.bus):
            subscription = w.bus.subscribe()

            async def read() -> int:
                return len([event async for event in subscription])

            reading = asyncio.ensure_future(read())
            await virtual.sleep(1)
            await w.publish(1, 2)
            await virtual.sleep(1)
            subscription.close()
            assert await reading == 2

    virtual.run(main)
