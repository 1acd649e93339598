"""Random histories of appends, retries, timers, trims and restarts: SQLite agrees with memory."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from leasehold.core.clock import Clock, SystemClock
from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.events.event import Checkpoint, Entity, Event, NewEvent, Timer
from leasehold.events.log import ANY, Log
from leasehold.events.memory import MemoryLog
from leasehold.events.sqlite import SqliteLog


class Stopped(SystemClock):
    def now(self) -> float:
        return 1000.0


CLOCK: Clock = Stopped()
entities = st.sampled_from([Entity("k", "a"), Entity("k", "b"), Entity("j", "a")])
ids = st.integers(0, 12).map(str)
times = st.none() | st.integers(1, 4).map(float)
appends = st.fixed_dictionaries(
    {
        "entity": entities,
        "parent": st.sampled_from([ANY, "head", "head", None]) | ids,
        "ids": st.lists(ids, max_size=3, unique=True),
        "timers": st.lists(st.builds(Timer, st.sampled_from("xy"), times, times), max_size=2),
        "checkpoint": st.none()
        | st.builds(
            Checkpoint,
            st.sampled_from("pq"),
            st.none() | ids,
            st.none() | st.just(b"s"),
            st.integers(0, 9),
        ),
    }
)
trims = st.tuples(st.just("trim"), entities, ids)
steps = st.lists(
    st.lists(appends, min_size=1, max_size=6) | trims | st.just("restart"), max_size=12
)


async def apply(log: Log, step: dict[str, Any]) -> object:
    entity, parent = step["entity"], step["parent"]
    if parent == "head":
        head = await log.head(entity)
        parent = head.id if head else None
    events = [NewEvent(id, "t", id.encode()) for id in step["ids"]]
    try:
        return await log.append(
            entity, parent, events, timers=step["timers"], checkpoint=step["checkpoint"]
        )
    except LeaseholdError as error:
        return error.to_dict()


async def everything(log: Log) -> object:
    seen: list[object] = [await log.last_seq(), await log.next_timer()]
    seen.append([e async for e in log.read_all(limit=3)])
    for kind in "kj":
        for entity, head in sorted(await log.entities(kind)):
            events = [e async for e in log.read(entity) if isinstance(e, Event)]
            seen += [entity, head, events]
            for event in events:
                seen.append([e async for e in log.read(entity, event.id)])
    seen.append(sorted(await log.due_timers(3.0)))
    seen += [await log.checkpoints(name) for name in "pq"]
    return seen


@settings(max_examples=40, deadline=None)
@given(steps)
def test_sqlite_agrees_with_memory(steps: list[Any]) -> None:
    async def run(path: Path) -> None:
        memory = MemoryLog(CLOCK)
        async with contextlib.AsyncExitStack() as stack:
            log = await stack.enter_async_context(running(SqliteLog(path, CLOCK)))
            for step in steps:
                if step == "restart":
                    await stack.aclose()
                    log = await stack.enter_async_context(running(SqliteLog(path, CLOCK)))
                elif isinstance(step, tuple):
                    assert await log.trim(*step[1:]) == await memory.trim(*step[1:])
                else:
                    # Gathered they are one batch of the writer, decided in this order; steps that
                    # read the head first must wait for the ones before them.
                    alone = any(s["parent"] == "head" for s in step)
                    for part in [[s] for s in step] if alone else [step]:
                        ours = await asyncio.gather(*(apply(log, s) for s in part))
                        assert ours == [await apply(memory, s) for s in part]
            assert await everything(log) == await everything(memory)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder) / "log.db"))
