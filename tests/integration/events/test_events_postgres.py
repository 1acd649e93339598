"""The shared log in a real PostgreSQL: the suite, several instances, ownership and fencing."""

from __future__ import annotations

import asyncio
import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.events.conformance import CASES, A, B, Case, new, soon, until_signal
from leasehold.events.event import Entity, Event, NewEvent, Subscribed
from leasehold.events.fenced import FencedLog
from leasehold.events.leases import PARTITIONS
from leasehold.events.log import ANY, StaleOwner
from leasehold.events.partitions import Partitions
from leasehold.events.postgres import PostgresLog


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_postgres(case: Case, database: str) -> None:
    async with running(PostgresLog(database)) as log:
        await case(log)


async def test_two_instances_append_without_gaps_and_hear_of_each_other(database: str) -> None:
    async with running(PostgresLog(database)) as one, running(PostgresLog(database)) as two:
        stream = two.signals()
        assert isinstance(await soon(anext(stream)), Subscribed)
        watched = two.read(B, watch=True)
        await soon(anext(watched))
        await one.append(B, None, [new("b")])
        await until_signal(stream, "b")
        event = await soon(anext(watched))
        assert isinstance(event, Event)

        async def write(log: PostgresLog, name: str) -> None:
            for n in range(50):
                await log.append(A, ANY, [new(f"{name}{n}")])

        await asyncio.gather(*(write(log, f"{i}-") for i, log in enumerate([one, two] * 4)))
        for log in (one, two):
            assert [e.seq async for e in log.read_all()] == list(range(1, 402))


async def test_a_lost_connection_is_said_and_made_again(database: str, postgres: str) -> None:
    import asyncpg

    async with running(PostgresLog(database)) as log:
        await log.append(A, None, [new("1")])
        db = await asyncpg.connect(database)
        await db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await db.close()
        codes = []
        while True:
            try:
                await log.append(A, ANY, [new("2")])
                break
            except LeaseholdError as error:
                codes.append(error.code)
        assert codes in ([], ["log_write_failed"])
        assert [e.id async for e in log.read(A) if isinstance(e, Event)] == ["1", "2"]


async def test_partitions_are_shared_out_and_taken_over(database: str) -> None:
    async with running(PostgresLog(database)) as one, running(PostgresLog(database)) as two:
        first = await one.claim("one", 0.6, {})
        assert len(first) == PARTITIONS
        second = await two.claim("two", 0.6, {})
        first = await one.claim("one", 0.6, first)
        second = await two.claim("two", 0.6, second)
        assert (len(first), len(second)) == (32, 32)
        assert not first.keys() & second.keys()
        # "one" is silent: after its time is over "two" has everything, with new epochs.
        await asyncio.sleep(0.7)
        second = await two.claim("two", 5.0, second)
        taken = await two.claim("two", 5.0, second)
        assert len(taken) == PARTITIONS
        assert all(taken[p] > first[p] for p in first)


async def test_a_paused_owner_that_wakes_up_changes_nothing(database: str) -> None:
    async with running(PostgresLog(database)) as one, running(PostgresLog(database)) as two:
        paused = Partitions(one, ttl=0.5)
        fenced = FencedLog(one, paused.epoch)
        await paused._claim()
        await fenced.append(A, None, [new("1")])
        await asyncio.sleep(0.6)
        assert not paused.owns(A)
        owner = Partitions(two, ttl=30)
        await owner._claim()
        assert owner.owns(A)
        with pytest.raises(StaleOwner):
            await fenced.append(A, ANY, [new("stale")])
        await FencedLog(two, owner.epoch).append(A, ANY, [new("2")])
        assert [e.id async for e in two.read(A) if isinstance(e, Event)] == ["1", "2"]


async def test_entities_of_a_host_are_placed(database: str) -> None:
    async with running(PostgresLog(database)) as log:
        mine = Partitions(log, placed=lambda e: e.id == "here" if e.kind == "repo" else None)
        async with running(mine):
            assert mine.owns(Entity("repo", "here"))
            assert not mine.owns(Entity("repo", "there"))
            assert mine.owns(A)
            assert mine.epoch(Entity("repo", "here")) is None


async def test_when_an_owner_is_killed_others_take_over_within_one_ttl(database: str) -> None:
    """Three instances; questions go on while one is killed, and another paused."""
    ttl = 2.0
    owner = Path(__file__).with_name("owner.py")
    processes = [
        subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, owner, database, name, str(ttl)], stdout=subprocess.PIPE
        )
        for name in ("one", "two", "three")
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"
        async with running(PostgresLog(database)) as log:

            async def ask(n: int) -> bytes:
                """Ask on an entity of its own; who answered."""
                entity = Entity("question", f"q{n}")
                await log.append(entity, ANY, [NewEvent(f"a{n}", "asked", b"")])
                async for event in log.read(entity, watch=True):
                    if isinstance(event, Event) and event.type == "answered":
                        return event.data
                raise AssertionError

            async def shared() -> set[bytes]:
                return set(await asyncio.gather(*(ask(next(numbers)) for _ in range(60))))

            numbers = itertools.count()
            async with asyncio.timeout(30):
                while len(await shared()) < 3:
                    pass
            processes[0].kill()
            killed = time.monotonic()
            async with asyncio.timeout(30):
                answers = await shared()
            assert time.monotonic() - killed < ttl + ttl / 3 + 2.0
            assert answers <= {b"one", b"two", b"three"}
            async with asyncio.timeout(30):
                assert await shared() == {b"two", b"three"}
            # One is paused for longer than its lease, and wakes up an owner of nothing.
            processes[1].send_signal(signal.SIGSTOP)
            async with asyncio.timeout(30):
                await shared()
                while await shared() != {b"three"}:
                    pass
            processes[1].send_signal(signal.SIGCONT)
            async with asyncio.timeout(30):
                while await shared() != {b"two", b"three"}:
                    pass
            for n in range(next(numbers)):
                events = [e async for e in log.read(Entity("question", f"q{n}"))]
                assert len(events) == 2, "answered exactly once"
    finally:
        for process in processes:
            process.kill()
            process.wait()
