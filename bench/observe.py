"""100,000 sleeping activities: what each costs in memory, what they cost together while idle, how
fast one wakes, and how long a restart takes when 1 % of the entities changed.

The peers are the other two engines one could build, on the same log: *eager* keeps a task with a
watching reader for each entity, *cron* looks at every entity's head each second.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

from bench.harness import median, percentile, result
from leasehold.core.service import running
from leasehold.events.event import Entity, Event, NewEvent, WillBlock
from leasehold.events.log import ANY
from leasehold.events.sqlite import SqliteLog
from leasehold.observe.activity import Activity, Context, Outcome
from leasehold.observe.engine import Engine


class Sleepy(Activity):
    name: ClassVar[str] = "sleepy"
    entity_kind: ClassVar[str] = "bench"
    ran: ClassVar[dict[str, float]] = {}
    runs: ClassVar[int] = 0

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.count = 0

    def fold(self, event: Event) -> None:
        self.count += 1

    async def settle(self) -> Outcome:
        Sleepy.ran[self.entity.id] = time.perf_counter()
        Sleepy.runs += 1
        return Outcome.SLEEP

    def save(self) -> bytes:
        return str(self.count).encode()

    def restore(self, state: bytes) -> None:
        self.count = int(state)


def resident() -> int:
    """Bytes of memory of this process."""
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmRSS")


async def fill(log: SqliteLog, count: int) -> None:
    async def one(n: int) -> None:
        await log.append(
            Entity("bench", f"akash1abcdefgh/{n}/1/1"), ANY, [NewEvent(f"a{n}", "t", b"{}")]
        )

    for start in range(0, count, 5000):
        await asyncio.gather(*(one(n) for n in range(start, min(count, start + 5000))))


async def until(runs: int) -> float:
    began = time.perf_counter()
    while Sleepy.runs < runs:  # noqa: ASYNC110
        await asyncio.sleep(0.002)
    return time.perf_counter() - began


async def busy(seconds: float) -> float:
    """Share of a core this process uses while nothing happens."""
    await asyncio.sleep(0.5)
    before, began = time.process_time(), time.perf_counter()
    await asyncio.sleep(seconds)
    return (time.process_time() - before) / (time.perf_counter() - began)


async def eager(log: SqliteLog, count: int) -> dict[str, float]:
    """A task and a watching reader for each entity."""
    before = resident()

    async def watch(entity: Entity) -> None:
        async for item in log.read(entity, watch=True):
            if isinstance(item, WillBlock):
                continue

    entities = [entity for entity, _ in (await log.entities("bench"))[:count]]
    began = time.perf_counter()
    tasks = [asyncio.create_task(watch(entity)) for entity in entities]
    await log.head(entities[-1])
    await asyncio.sleep(count / 5000)
    out = {"bytes_each": (resident() - before) / count, "start_s": time.perf_counter() - began}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return out


async def cron(log: SqliteLog, count: int) -> float:
    """Share of a core that looking at each entity's head every second would take."""
    entities = [entity for entity, _ in (await log.entities("bench"))[:count]]
    before = time.process_time()
    for entity in entities:
        await log.head(entity)
    return time.process_time() - before


async def long_history(log: SqliteLog, events: int) -> float:
    """Milliseconds from news to the run of an entity with a long history, out of its sleep."""
    entity = Entity("bench", "long")
    for start in range(0, events, 10_000):
        some = [NewEvent(f"l{n}", "t", b"{}") for n in range(start, min(events, start + 10_000))]
        await log.append(entity, ANY, some)
    waits = []
    for n in range(6):
        engine = Engine(log)
        engine.register(Sleepy)
        async with running(engine):
            while n == 0 and "long" not in Sleepy.ran:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            Sleepy.ran.pop("long", None)
            await log.append(entity, ANY, [NewEvent(f"long{n}", "t", b"{}")])
            sent = time.perf_counter()
            while "long" not in Sleepy.ran:  # noqa: ASYNC110
                await asyncio.sleep(0)
            waits.append(max(0.0, Sleepy.ran["long"] - sent))
    return median(waits) * 1000


async def measure(quick: bool) -> dict[str, Any]:
    count = 20_000 if quick else 100_000
    with tempfile.TemporaryDirectory() as name:
        async with running(SqliteLog(Path(name) / "log.db")) as log:
            await fill(log, count)
            engine = Engine(log)
            engine.register(Sleepy)
            async with running(engine):
                first_s = await until(count)
            Sleepy.ran.clear()
            before = resident()
            engine = Engine(log)
            engine.register(Sleepy)
            async with running(engine):
                bytes_each = (resident() - before) / count
                idle = await busy(2.0 if quick else 5.0)
                waits = []
                for n in range(300):
                    id = f"akash1abcdefgh/{n * 31 % count}/1/1"
                    sent = time.perf_counter()
                    Sleepy.ran.pop(id, None)
                    await log.append(Entity("bench", id), ANY, [NewEvent(f"w{n}", "t", b"{}")])
                    sent = time.perf_counter()
                    while id not in Sleepy.ran:  # noqa: ASYNC110
                        await asyncio.sleep(0)
                    waits.append(max(0.0, Sleepy.ran[id] - sent))
            changed = count // 100
            for n in range(changed):
                entity = Entity("bench", f"akash1abcdefgh/{n * 97 % count}/1/1")
                await log.append(entity, ANY, [NewEvent(f"r{n}", "t", b"{}")])
            Sleepy.runs = 0
            began = time.perf_counter()
            engine = Engine(log)
            engine.register(Sleepy)
            async with running(engine):
                await until(changed)
                restart = time.perf_counter() - began
            some = min(count, 5000)
            peer = await eager(log, some)
            polled = await cron(log, some)
            long_events = 50_000 if quick else 1_000_000
            long_wake = await long_history(log, long_events)
    return result(
        "observe",
        bytes_each,
        "bytes a sleeping activity",
        peer="eager engine (a task and a watching reader each)",
        peer_value=peer["bytes_each"],
        higher_is_better=False,
        aim="value <= 512, idle_cpu < 0.01, wake p50 < 1 ms and p99 < 10 ms, restart_s < 1, "
        "long_history_wake_ms < 5",
        activities=count,
        idle_cpu=round(idle, 5),
        cron_idle_cpu=round(polled * count / some, 3),
        wake_p50_ms=round(percentile(waits, 0.5) * 1000, 3),
        wake_p99_ms=round(percentile(waits, 0.99) * 1000, 3),
        restart_s=round(restart, 3),
        long_history_events=long_events,
        long_history_wake_ms=round(long_wake, 3),
        first_start_s=round(first_s, 3),
        eager_start_s=round(peer["start_s"] * count / some, 3),
    )


def run(quick: bool) -> dict[str, Any]:
    return asyncio.run(measure(quick))
