"""The bus in virtual time: what fires when, what is held, what is dropped."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leasehold.core.clock import VirtualClock
from leasehold.core.service import running
from leasehold.node.spells.bus import Bus
from leasehold.node.spells.trigger import (
    ClockConfig,
    ConnectionConfig,
    TriggerConfig,
    TriggerEvent,
)

YEAR = 365 * 86400


def every(period: int, start: int = 1, end: int = 0, **fields: object) -> TriggerConfig:
    return TriggerConfig(clock=ClockConfig(start, end, period), **fields)  # type: ignore[arg-type]


CONNECT = TriggerConfig(connections=ConnectionConfig(connect=True))


class Seen(list[tuple[str, float, TriggerEvent]]):
    """Everything delivered: spell, seconds since the start, event."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock

    def __call__(self, spell: str, event: TriggerEvent) -> None:
        self.append((spell, self.clock.monotonic(), event))

    def times(self, spell: str) -> list[float]:
        return [round(at, 3) for name, at, _ in self if name == spell]


def bus_in(virtual: VirtualClock, **options: object) -> tuple[Bus, Seen]:
    seen = Seen(virtual)
    return Bus(seen, clock=virtual, **options), seen  # type: ignore[arg-type]


def test_periodic_one_shot_and_end(virtual: VirtualClock) -> None:
    async def main() -> Seen:
        bus, seen = bus_in(virtual)
        async with running(bus):
            bus.open()
            now = virtual.now()
            bus.subscribe("periodic", every(10), armed_at=now)
            bus.subscribe("once", every(0), armed_at=now)
            bus.subscribe("later", every(0, int(now) + 7), armed_at=now)
            bus.subscribe("ending", every(10, 1, int(now) + 25), armed_at=now)
            await virtual.sleep(45)
            assert bus.subscribed("once") is None
            assert bus.subscribed("ending") is None
            return seen

    seen = virtual.run(main)
    assert seen.times("periodic") == [0, 10, 20, 30, 40]
    assert seen.times("once") == [0]
    assert seen.times("later") == [7]
    assert seen.times("ending") == [0, 10, 20]


def test_connections_carry_the_peer_and_go_to_those_who_asked(virtual: VirtualClock) -> None:
    async def main() -> Seen:
        bus, seen = bus_in(virtual)
        async with running(bus):
            bus.open()
            bus.subscribe("in", CONNECT, armed_at=virtual.now())
            both = TriggerConfig(connections=ConnectionConfig(True, True))
            bus.subscribe("both", both, armed_at=virtual.now())
            bus.connection("peer-1", connected=True)
            bus.connection("peer-1", connected=False)
            bus.unsubscribe("both")
            bus.unsubscribe("unknown")
            bus.connection("peer-2", connected=True)
            return seen

    events = [(spell, event.data) for spell, _, event in virtual.run(main)]
    first = {"peer_id": "peer-1", "connected": True}
    assert events == [
        ("in", first),
        ("both", first),
        ("both", {"peer_id": "peer-1", "connected": False}),
        ("in", {"peer_id": "peer-2", "connected": True}),
    ]


def test_nothing_is_delivered_before_open_and_nothing_is_lost(virtual: VirtualClock) -> None:
    async def main() -> tuple[int, Seen]:
        bus, seen = bus_in(virtual, max_held=3)
        async with running(bus):
            bus.subscribe("clock", every(60), armed_at=virtual.now())
            bus.subscribe("peer", CONNECT, armed_at=virtual.now())
            bus.subscribe("twice", every(60), armed_at=virtual.now())
            bus.subscribe("twice", every(60), armed_at=virtual.now())
            for n in range(5):
                bus.connection(f"peer-{n}", connected=True)
            await virtual.sleep(30)
            before = len(seen)
            bus.open()
            await virtual.sleep(1)
            return before, seen

    before, seen = virtual.run(main)
    assert before == 0
    assert seen.times("clock") == [30]
    assert seen.times("twice") == [30]
    held = [event.data["peer_id"] for spell, _, event in seen if spell == "peer"]
    assert held == ["peer-2", "peer-3", "peer-4"]  # Bounded: the oldest yield.


def test_resubscribe_after_a_one_shot_and_replace(virtual: VirtualClock) -> None:
    async def main() -> Seen:
        bus, seen = bus_in(virtual)
        async with running(bus):
            bus.open()
            bus.subscribe("s", every(0), armed_at=virtual.now())
            await virtual.sleep(5)
            bus.subscribe("s", every(0), armed_at=virtual.now())
            await virtual.sleep(5)
            bus.subscribe("s", every(100), armed_at=virtual.now())
            bus.subscribe("s", every(3), armed_at=virtual.now())
            await virtual.sleep(7)
            return seen

    assert virtual.run(main).times("s") == [0, 5, 10, 13, 16]


def test_clock_jumps(virtual: VirtualClock) -> None:
    """Forward: one run for all that was missed. Back: the period goes on from the new time."""

    async def main() -> Seen:
        bus, seen = bus_in(virtual, look_again=1.0)
        async with running(bus):
            bus.open()
            bus.subscribe("s", every(60), armed_at=virtual.now())
            await virtual.sleep(90)  # 0, 60
            virtual.jump(86_400)
            await virtual.sleep(1.5)  # one for the whole day
            count = len(seen)
            virtual.jump(-YEAR)
            await virtual.sleep(120)
            assert len(seen) - count == 2
            return seen

    seen = virtual.run(main)
    assert seen.times("s")[:2] == [0, 60]
    assert len(seen) == 5


@pytest.mark.parametrize("policy", ["none", "once", "all"])
def test_time_asleep_is_caught_up_by_policy(virtual: VirtualClock, policy: str) -> None:
    async def main() -> Seen:
        bus, seen = bus_in(virtual)
        async with running(bus):
            bus.open()
            armed = virtual.now() - 1000
            bus.subscribe("s", every(100, catch_up=policy), armed_at=armed, last=armed + 200)
            await virtual.sleep(50)
            return seen

    seen = virtual.run(main)
    expected = {"none": 1, "once": 1, "all": 8}[policy]
    # The last missed tick is due just now, so even `none` fires that one.
    assert len(seen) == expected
    assert [event.due for _, _, event in seen][-1] == virtual.start


@settings(max_examples=30, deadline=None)
@given(
    periods=st.lists(st.integers(3600, 10**8), min_size=1, max_size=5),
    years=st.integers(1, 100),
)
def test_a_century_without_drift(periods: list[int], years: int) -> None:
    """Every tick at base + k * period, to the second, for up to 100 years of virtual time."""
    virtual = VirtualClock()
    horizon = min(years * YEAR, 3000 * min(periods))

    async def main() -> Seen:
        bus, seen = bus_in(virtual, look_again=1e12)
        async with running(bus):
            bus.open()
            for index, period in enumerate(periods):
                bus.subscribe(f"s{index}", every(period), armed_at=virtual.now())
            await virtual.sleep(horizon - 1)
            return seen

    seen = virtual.run(main)
    for index, period in enumerate(periods):
        dues = [event.due - virtual.start for s, _, event in seen if s == f"s{index}"]  # type: ignore[operator]
        assert dues == [float(k * period) for k in range(-(-(horizon - 1) // period))][: len(dues)]
        assert len(dues) in {(horizon - 1) // period + 1, -(-(horizon - 1) // period)}
    late = [at + virtual.start - event.due for _, at, event in seen]  # type: ignore[operator]
    assert all(-1e-3 < seconds < 1e-3 for seconds in late)


async def test_commands_hold_when_they_return() -> None:
    seen: list[str] = []
    bus = Bus(lambda spell, event: seen.append(spell))
    async with running(bus):
        bus.open()
        bus.subscribe("s", CONNECT, armed_at=0)
        bus.connection("p", connected=True)
        bus.unsubscribe("s")
        bus.connection("p", connected=True)
        await asyncio.sleep(0)
    assert seen == ["s"]
