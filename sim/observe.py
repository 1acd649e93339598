"""The real engine and the real storage activities under a virtual clock and a log that misbehaves.

Signals are dropped, repeated, delayed and reordered, their stream breaks, appends fail before or
after they were committed, and the process is stopped and started at random moments while repos are
made, frozen, thawed and moved and their histories trimmed. At the end every repo must be where its
history says, served once, with nothing half done. Everything comes from the seed, so a failure can
be run again::

    python -m sim observe --seed 7 --runs 20
    python -m sim observe --entities 1000000     # one activity each, lossy signals
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

from leasehold.core import logs
from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError, unavailable
from leasehold.core.service import running
from leasehold.events.event import Entity, Event, NewEvent, Signal, Subscribed
from leasehold.events.log import ANY
from leasehold.events.memory import MemoryLog
from leasehold.observe.activity import Activity
from leasehold.observe.engine import Engine
from leasehold.storage.testing import PretendedHost
from leasehold.storage.trimming import Policy

TRIM = Policy(events=15, keep_s=30.0)
"""Histories are cut short all the time."""


class FaultyLog(MemoryLog):
    """A log in memory whose signals cannot be trusted and whose appends may fail."""

    def __init__(self, clock: VirtualClock, rng: random.Random, faults: float) -> None:
        super().__init__(clock)
        self.rng = rng
        self.faults = faults

    async def append(
        self, entity: Entity, parent: str | None, events: Sequence[NewEvent], **more: Any
    ) -> list[Event]:
        if self.rng.random() < self.faults / 4:
            raise unavailable("log_write_failed", "lost before the commit")
        committed = await super().append(entity, parent, events, **more)
        if self.rng.random() < self.faults / 4:
            raise unavailable("log_write_failed", "lost after the commit")
        return committed

    async def signals(self, after_seq: int | None = None) -> AsyncIterator[Signal | Subscribed]:
        held: list[Signal] = []
        async for item in super().signals(after_seq):
            if isinstance(item, Subscribed):
                yield item
                continue
            chance = self.rng.random()
            if chance < self.faults:
                continue  # dropped
            held.append(item)
            if chance < 2 * self.faults:
                continue  # delayed until the next one, and out of order
            self.rng.shuffle(held)
            for signal in held:
                yield signal
                if chance > 1 - self.faults:
                    yield signal  # repeated
            held.clear()
            if self.rng.random() < self.faults / 20:
                raise unavailable("stream_broken", "the signal stream broke")


def storage_run(seed: int, repos: int, faults: float) -> dict[str, int]:
    """One history; raises AssertionError with what is wrong at the end."""
    clock = VirtualClock()
    rng = random.Random(seed)
    counts = {"restarts": 0, "actions": 0, "refused": 0, "trimmed": 0}

    async def act(host: PretendedHost, ids: list[str], n: int) -> None:
        repo = rng.choice(ids)
        counts["actions"] += 1
        try:
            if rng.random() < 0.4:
                await host.repos.begin_move(
                    repo, f"moved/{n}", "local", timeout=rng.choice([0.5, 60.0])
                )
            else:
                action = rng.choice(["freeze", "unfreeze", "archive", "unarchive"])
                await host.repos.begin(action, repo, author="sim")
        except LeaseholdError:
            counts["refused"] += 1

    async def main() -> None:
        log = FaultyLog(clock, rng, faults)
        ids: list[str] = []
        for round_ in range(6):
            host = PretendedHost(
                log,
                clock,
                Engine(log, clock, rng=rng),
                seconds=rng.choice([0.0, 0.01, 1.0]),
                trim=TRIM,
            )
            async with running(host.engine):
                while len(ids) < repos:
                    try:
                        path = f"leases/acme/{len(ids)}/web/data"
                        ids.append(await host.repos.accept(path, "local"))
                    except LeaseholdError:
                        continue
                for n in range(20):
                    await act(host, ids, round_ * 100 + n)
                    await clock.sleep(rng.expovariate(2.0))
            counts["restarts"] += 1
        log.faults = 0.0
        host = PretendedHost(log, clock, Engine(log, clock, rng=rng), trim=TRIM)
        async with running(host.engine):
            await clock.sleep(1000)
            for repo in ids:
                if repo in host.engine.table.registrations["repo"].asleep:
                    host.engine.operators.kick("repo", repo)
            await clock.sleep(100)
            registry = await host.repos.registries.state("local")
            for repo in ids:
                state = await host.repos.repo(repo)
                where = registry.repos[repo]
                assert not state.busy, f"{repo}: {state.busy}"
                assert not state.error, f"{repo}: {state.error}"
                assert (where.path, where.move) == (state.path, ""), f"{repo}: {where}"
                served = host.files.enabled.get(repo)
                assert served is not None, f"{repo} is not served"
                assert served.path == state.path, f"{repo} is served at {served.path}"
            counts["trimmed"] = sum(event is None for event in log._all)
            for lane in host.engine.table.lanes.values():
                assert lane.free == lane.slots, f"{lane.name} lost slots"

    clock.run(main)
    return counts


class Last(Activity):
    """Remembers the newest event of its entity."""

    name: ClassVar[str] = "last"
    entity_kind: ClassVar[str] = "thing"
    seen: ClassVar[dict[str, str]] = {}

    def fold(self, event: Event) -> None:
        self.seen[self.entity.id] = event.id

    def save(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None: ...


def many_run(seed: int, entities: int, faults: float) -> float:
    """That many entities, each with news that may not be signalled; returns real seconds."""
    clock = VirtualClock()
    rng = random.Random(seed)
    Last.seen.clear()
    began = time.monotonic()

    async def main() -> None:
        log = FaultyLog(clock, rng, 0.0)
        for n in range(entities):
            await log.append(Entity("thing", str(n)), None, [NewEvent("a", "t", b"{}")])
        engine = Engine(log, clock, rng=rng)
        engine.register(Last)
        log.faults = faults
        async with running(engine):
            await clock.sleep(1)
            newest = {}
            for n in rng.sample(range(entities), entities // 10):
                try:
                    await log.append(Entity("thing", str(n)), ANY, [NewEvent("b", "t", b"{}")])
                except LeaseholdError:
                    continue
                newest[str(n)] = "b"
            log.faults = 0.0
            await clock.sleep(600)
            assert len(Last.seen) == entities
            behind = [id for id in newest if Last.seen[id] != "b"]
            assert not behind, f"{len(behind)} entities sleep although they have news"

    clock.run(main)
    return time.monotonic() - began


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m sim observe")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--repos", type=int, default=20)
    parser.add_argument("--faults", type=float, default=0.2)
    parser.add_argument("--entities", type=int, default=0)
    options = parser.parse_args(argv)
    logs.configure("critical")  # what fails on purpose is not worth a line each
    runs = options.runs or (5 if options.quick else 50)
    entities = options.entities or (10_000 if options.quick else 1_000_000)
    total = {"restarts": 0, "actions": 0, "refused": 0, "trimmed": 0}
    for seed in range(options.seed, options.seed + runs):
        try:
            counts = storage_run(seed, options.repos, options.faults)
        except AssertionError as error:
            raise SystemExit(f"seed {seed}: {error}") from error
        total = {key: total[key] + counts[key] for key in total}
    print(f"storage: {runs} seeds, {total}: every repo in one place, nothing half done")
    seconds = many_run(options.seed, entities, options.faults)
    print(f"engine: {entities} entities, lossy signals: all awake in {seconds:.1f} s")
