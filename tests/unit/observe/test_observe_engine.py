"""The engine in virtual time over a log in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, ClassVar

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.events.event import Entity, Event, NewEvent
from leasehold.events.log import ANY
from leasehold.events.memory import MemoryLog
from leasehold.observe.activity import Activity, Context, Outcome, Reconciler
from leasehold.observe.engine import Engine
from leasehold.observe.settings import ObserveSettings


class Counting(Activity):
    """Counts events; what it saw and did is noted in ``seen``."""

    name: ClassVar[str] = "counting"
    entity_kind: ClassVar[str] = "thing"
    seen: ClassVar[list[tuple[str, str, int]]] = []
    fail: ClassVar[Counter[str]] = Counter()

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.count = 0

    def fold(self, event: Event) -> None:
        self.count += 1

    async def settle(self) -> Outcome:
        self.seen.append((self.entity.id, "settled", self.count))
        if self.fail[self.entity.id] > 0:
            self.fail[self.entity.id] -= 1
            raise LeaseholdError("not_now", "not now")
        return Outcome.SLEEP


class Saving(Counting):
    name: ClassVar[str] = "saving"

    def save(self) -> bytes:
        return str(self.count).encode()

    def restore(self, state: bytes) -> None:
        self.count = int(state)


@pytest.fixture(autouse=True)
def _clean() -> None:
    Counting.seen.clear()
    Counting.fail.clear()


async def say(log: MemoryLog, id: str, count: int = 1) -> None:
    for _ in range(count):
        new = NewEvent(f"{id}-{await log.last_seq()}", "t", b"{}")
        await log.append(Entity("thing", id), ANY, [new])


def test_it_folds_the_past_once_and_reacts_to_each_event() -> None:
    clock = VirtualClock()

    async def main() -> None:
        log = MemoryLog(clock)
        await say(log, "a", 3)
        engine = Engine(log, clock)
        engine.register(Counting)
        async with running(engine):
            await clock.sleep(1)
            assert Counting.seen == [("a", "settled", 3)]
            await say(log, "a")
            await say(log, "b")
            await clock.sleep(1)
            assert Counting.seen[1:] == [("a", "settled", 4), ("b", "settled", 1)]

    clock.run(main)


def test_failures_are_retried_with_the_state_of_the_log() -> None:
    clock = VirtualClock()

    async def main() -> None:
        log = MemoryLog(clock)
        engine = Engine(log, clock)
        engine.register(Saving)
        async with running(engine):
            await say(log, "a", 2)
            await clock.sleep(1)
            Counting.fail["a"] = 5
            await say(log, "a")
            await clock.sleep(600)
            # A failed event is folded once into what was saved before it, however many tries.
            assert {count for _, _, count in Counting.seen[1:]} == {3}
            assert len(Counting.seen) == 7
            assert engine.operators.tasks(state="retrying") == []
            assert await log.checkpoints("errors/saving") == {}

    clock.run(main)


def test_an_error_is_stored_and_survives_until_it_is_over() -> None:
    clock = VirtualClock()

    async def main() -> None:
        log = MemoryLog(clock)
        engine = Engine(log, clock)
        engine.register(Saving)
        Counting.fail["a"] = 1000
        async with running(engine):
            await say(log, "a")
            await clock.sleep(30)
            row = engine.operators.inspect("saving", "a")
            assert row["state"] == "retrying"
            assert row["error"]["code"] == "not_now"
            assert len(await log.checkpoints("errors/saving")) == 1
            await say(log, "b")  # others go on
            await clock.sleep(1)
            assert ("b", "settled", 1) in Counting.seen
        again = Engine(log, clock)
        again.register(Saving)
        Counting.fail["a"] = 0
        async with running(again):
            await clock.sleep(1)
            assert again.operators.inspect("saving", "a")["state"] == "sleeping"
            assert await log.checkpoints("errors/saving") == {}

    clock.run(main)


def test_a_restart_wakes_only_what_changed() -> None:
    clock = VirtualClock()

    async def main() -> None:
        log = MemoryLog(clock)
        for n in range(100):
            await say(log, f"e{n}", 2)
        engine = Engine(log, clock)
        engine.register(Saving)
        async with running(engine):
            await clock.sleep(1)
        assert len(Counting.seen) == 100
        await say(log, "e7")
        Counting.seen.clear()
        engine = Engine(log, clock)
        engine.register(Saving)
        async with running(engine):
            await clock.sleep(1)
            assert Counting.seen == [("e7", "settled", 3)]
            await say(log, "e8")
            await clock.sleep(1)
            assert Counting.seen[1:] == [("e8", "settled", 3)]
            (row,) = engine.operators.counts()
            assert row["sleeping"] == 100

    clock.run(main)


class Ending(Counting):
    name: ClassVar[str] = "ending"

    async def settle(self) -> Outcome:
        await super().settle()
        return Outcome.DONE if self.count >= 2 else Outcome.SLEEP


def test_the_finished_stay_finished_until_there_is_news() -> None:
    clock = VirtualClock()

    async def main() -> None:
        log = MemoryLog(clock)
        await say(log, "a", 2)
        for expected in (1, 1):
            engine = Engine(log, clock)
            engine.register(Ending)
            async with running(engine):
                await clock.sleep(1)
                assert len(Counting.seen) == expected
                if expected == 2:
                    continue
        async with running(_with(Ending, log, clock)):
            await clock.sleep(1)
            await say(log, "a")
            await clock.sleep(1)
            assert Counting.seen == [("a", "settled", 2), ("a", "settled", 3)]

    clock.run(main)


def _with(activity: type[Activity], log: MemoryLog, clock: VirtualClock) -> Engine:
    engine = Engine(log, clock)
    engine.register(activity)
    return engine


class Alarmed(Reconciler):
    """Arms a timer an hour ahead, and once more when it fires the first time."""

    name: ClassVar[str] = "alarmed"
    entity_kind: ClassVar[str] = "thing"
    rang: ClassVar[list[float]] = []

    def fold(self, event: Event) -> None: ...

    async def settle(self) -> Outcome:
        if not self.rang:
            await self.context.arm("alarm", self.context.clock.now() + 3600)
        return Outcome.SLEEP

    async def fired(self, timer: str) -> Outcome:
        assert timer == "alarm"
        self.rang.append(self.context.clock.now())
        if len(self.rang) == 1:
            await self.context.arm("alarm", self.context.clock.now() + 60)
        return Outcome.SLEEP


def test_timers_fire_on_time_and_survive_a_restart() -> None:
    clock = VirtualClock()
    Alarmed.rang.clear()

    async def main() -> None:
        log = MemoryLog(clock)
        start = clock.now()
        async with running(_with(Alarmed, log, clock)):
            await say(log, "a")
            await clock.sleep(10)
        await clock.sleep(10)
        async with running(_with(Alarmed, log, clock)):
            await clock.sleep(4000)
        # Settling again after the restart, 20 s later, set it anew.
        assert [round(at - start, 1) for at in Alarmed.rang] == [3620, 3680]
        assert await log.next_timer() is None

    clock.run(main)


class Waiting(Activity):
    """Waits outside until all are there: possible only when waiting takes no slot."""

    name: ClassVar[str] = "waiting"
    entity_kind: ClassVar[str] = "thing"
    limit: ClassVar[str] = "repo"
    inside: ClassVar[list[int]] = [0, 0]

    def fold(self, event: Event) -> None: ...

    async def settle(self) -> Outcome:
        here, most = self.inside
        self.inside[:] = [here + 1, max(most, here + 1)]
        await asyncio.sleep(0.001)
        self.inside[0] -= 1
        self.gate.count_down()
        async with self.context.outside():
            await self.gate.open.wait()
        self.inside[0] += 1
        await asyncio.sleep(0.001)
        self.inside[0] -= 1
        return Outcome.SLEEP

    gate: ClassVar[Any]


class Gate:
    def __init__(self, count: int) -> None:
        self.left = count
        self.open = asyncio.Event()

    def count_down(self) -> None:
        self.left -= 1
        if not self.left:
            self.open.set()


def test_waiting_outside_takes_no_slot_and_working_never_exceeds_them() -> None:
    clock = VirtualClock()

    async def main() -> None:
        Waiting.gate, Waiting.inside[:] = Gate(200), [0, 0]
        log = MemoryLog(clock)
        engine = Engine(log, clock, ObserveSettings(repo=3))
        engine.register(Waiting)
        async with running(engine):
            for n in range(200):
                await say(log, f"e{n}")
            await clock.sleep(60)
            assert engine.operators.counts()[0].get("running", 0) == 0
            assert engine.table.lanes["repo"].free == 3
        assert Waiting.inside == [0, 3]

    clock.run(main)


def test_operators_pause_kick_and_resume() -> None:
    clock = VirtualClock()

    async def main() -> None:
        log = MemoryLog(clock)
        engine = _with(Saving, log, clock)
        async with running(engine):
            await say(log, "a")
            await clock.sleep(1)
            engine.operators.kick("saving", "a")
            await clock.sleep(1)
            assert len(Counting.seen) == 2
            await engine.operators.pause("saving", "a")
            await say(log, "a")
            await clock.sleep(60)
            assert len(Counting.seen) == 2
            assert engine.operators.inspect("saving", "a")["state"] == "paused"
        engine = _with(Saving, log, clock)
        async with running(engine):
            await clock.sleep(60)
            assert len(Counting.seen) == 2
            await engine.operators.resume("saving", "a")
            await clock.sleep(1)
            assert Counting.seen[2:] == [("a", "settled", 2)]
            with pytest.raises(LeaseholdError, match="no activity"):
                engine.operators.inspect("saving", "nobody")

    clock.run(main)


class Told(Counting):
    name: ClassVar[str] = "told"

    async def settle(self) -> Outcome:
        self.seen.append((self.context.option, self.context.activity, self.count))
        return Outcome.DONE if self.context.option == "brief" else Outcome.SLEEP


def test_activities_begun_by_others() -> None:
    clock = VirtualClock()

    async def main() -> None:
        log = MemoryLog(clock)
        engine = Engine(log, clock)
        engine.register(Told, every=False)
        await say(log, "a")
        async with running(engine):
            await clock.sleep(1)
            assert Counting.seen == []
            engine.begin("told", "a")
            engine.begin("told", "a", key="k", option="brief")
            engine.begin("told", "a", key="k", option="ignored")
            over = engine.finished("told", "a", key="k")
            await clock.sleep(1)
            assert over.is_set()
            assert engine.finished("told", "a", key="k").is_set()
            assert not engine.finished("told", "a").is_set()
            assert Counting.seen == [(None, "told", 1), ("brief", "told#k", 1)]
            await say(log, "a")
            await clock.sleep(1)
            assert Counting.seen[2:] == [(None, "told", 2)]

    clock.run(main)
