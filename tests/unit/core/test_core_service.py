"""The lifecycle: ordered start, reverse stop, one error, nothing left running."""

from __future__ import annotations

import asyncio

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.core.service import Group, Service, State, running


class Part(Service):
    def __init__(self, name: str, journal: list[str], clock: VirtualClock, **how: object) -> None:
        super().__init__(name, clock=clock)
        self.journal = journal
        self.how = how

    async def start(self) -> None:
        self.resources.callback(self.journal.append, f"{self.name} released")
        if self.how.get("start") == "fails":
            raise ValueError(f"{self.name} cannot start")
        if self.how.get("start") == "hangs":
            await asyncio.Event().wait()
        self.journal.append(f"{self.name} started")
        self.spawn(self._work())

    async def _work(self) -> None:
        try:
            if self.how.get("work") == "fails":
                await self.clock.sleep(5)
                raise ValueError(f"{self.name} broke")
            await asyncio.Event().wait()
        finally:
            self.journal.append(f"{self.name} task ended")

    async def stop(self) -> None:
        if self.how.get("stop") == "hangs":
            await asyncio.Event().wait()
        self.journal.append(f"{self.name} stopped")


def test_stop_is_in_reverse_and_leaves_nothing(virtual: VirtualClock) -> None:
    journal: list[str] = []

    async def main() -> int:
        async with running(Group([Part(n, journal, virtual) for n in "abc"])):
            assert journal == ["a started", "b started", "c started"]
        return len(asyncio.all_tasks())

    assert virtual.run(main) == 1
    ends = [line for line in journal if "stopped" in line or "released" in line]
    assert ends == [f"{n} {what}" for n in "cba" for what in ("stopped", "released")]


def test_nth_failing_to_start_stops_those_before_and_is_the_error(virtual: VirtualClock) -> None:
    journal: list[str] = []
    parts = [Part("a", journal, virtual), Part("b", journal, virtual)]
    parts.append(Part("c", journal, virtual, start="fails"))
    parts.append(Part("d", journal, virtual))

    async def main() -> None:
        with pytest.raises(ValueError, match="c cannot start"):
            async with running(Group(parts)):
                raise AssertionError("must not be reached")

    virtual.run(main)
    assert [p.state for p in parts] == [State.STOPPED] * 3 + [State.NEW]
    assert journal.index("b stopped") < journal.index("a stopped")
    assert journal.count("a task ended") == journal.count("b task ended") == 1


def test_a_part_that_fails_while_running_stops_all(virtual: VirtualClock) -> None:
    journal: list[str] = []
    parts = [Part("a", journal, virtual), Part("b", journal, virtual, work="fails")]

    async def main() -> None:
        with pytest.raises(ValueError, match="b broke"):
            async with running(Group(parts)):
                await asyncio.Event().wait()

    virtual.run(main)
    assert "a released" in journal
    assert virtual.monotonic() == 5


def test_start_and_stop_have_deadlines(virtual: VirtualClock) -> None:
    journal: list[str] = []

    async def main() -> None:
        with pytest.raises(LeaseholdError, match="did not start within"):
            async with running(Part("a", journal, virtual, start="hangs")):
                pass
        async with running(Part("b", journal, virtual, stop="hangs")):
            pass

    virtual.run(main)
    assert virtual.monotonic() == Service.start_deadline + Service.stop_deadline
    assert "b task ended" in journal


def test_stopping_twice_is_harmless_and_a_stopped_service_takes_no_work(
    virtual: VirtualClock,
) -> None:
    async def main() -> None:
        part = Part("a", [], virtual)
        async with running(part):
            await part.shutdown()
            await part.shutdown()
            assert part.state is State.STOPPED
            with pytest.raises(LeaseholdError) as refused:
                part.spawn(asyncio.sleep(0))
            assert refused.value.code == "not_running"

    virtual.run(main)
