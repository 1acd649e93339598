"""W10: a tail that was trimmed away fails for ever. W11: one event that cannot be read stalls all.

For W10 let ``Runs._activity`` keep the tail when the log says ``Trimmed``: the activity
retries without end. For W11 let ``RepoInit.settle`` raise at the first failure: the repo behind
the poisoned one is never made.
"""

from __future__ import annotations

from typing import ClassVar

from leasehold.core.clock import VirtualClock
from leasehold.core.service import running
from leasehold.events.event import Entity, Event, NewEvent
from leasehold.events.log import ANY
from leasehold.events.memory import MemoryLog
from leasehold.observe.activity import Activity, Outcome
from leasehold.observe.engine import Engine
from leasehold.storage.testing import PretendedHost


class Sum(Activity):
    """Adds up its events; an event of type ``snapshot`` holds the sum so far."""

    name: ClassVar[str] = "sum"
    entity_kind: ClassVar[str] = "thing"
    results: ClassVar[list[int]] = []

    def __init__(self, context: object) -> None:
        super().__init__(context)  # type: ignore[arg-type]
        self.total = 0

    def fold(self, event: Event) -> None:
        value = int(event.data)
        self.total = value if event.type == "snapshot" else self.total + value

    async def settle(self) -> Outcome:
        self.results.append(self.total)
        return Outcome.SLEEP

    def save(self) -> bytes:
        return str(self.total).encode()

    def restore(self, state: bytes) -> None:
        self.total = int(state)


def test_w10_a_trimmed_tail_is_healed_from_the_snapshot() -> None:
    clock = VirtualClock()
    thing = Entity("thing", "a")

    async def main() -> None:
        log = MemoryLog(clock)
        await log.append(thing, None, [NewEvent("1", "add", b"1"), NewEvent("2", "add", b"2")])
        for _ in range(2):
            engine = Engine(log, clock)
            engine.register(Sum)
            async with running(engine):
                await clock.sleep(10)
            more = [NewEvent("3", "add", b"3"), NewEvent("s", "snapshot", b"6")]
            await log.append(thing, ANY, [*more, NewEvent("4", "add", b"4")])
            await log.trim(thing, "s")
        assert Sum.results == [3, 10]

    clock.run(main)


def test_w11_a_poisoned_repo_stops_only_itself() -> None:
    clock = VirtualClock()

    async def main() -> None:
        log = MemoryLog(clock)
        host = PretendedHost(log, clock)
        paths = [f"leases/acme/{n}/web/data" for n in range(3)]
        repos = [await host.repos.accept(path, "local") for path in paths]
        await log.append(Entity("repo", repos[0]), None, [NewEvent("x", "no.such.type", b"{}")])
        async with running(host.engine):
            await clock.sleep(60)
            assert set(host.files.enabled) == set(repos[1:])
            (row,) = [t for t in host.engine.operators.tasks("replicate") if t["error"]]
            assert row["state"] == "parked"
            assert row["error"]["code"] == "event_undecodable"
            more = await host.repos.accept("leases/acme/9/web/data", "local")
            await clock.sleep(60)
            assert more in host.files.enabled

    clock.run(main)
