"""Appends as fast as it can and says on stdout what was acknowledged. Made to be killed.

``python append_storm.py PATH RUN``: every acknowledged append is one line ``entity id id``.
"""

from __future__ import annotations

import asyncio
import os
import sys

from leasehold.core.service import running
from leasehold.events.event import Checkpoint, Entity, NewEvent, Timer
from leasehold.events.log import ANY
from leasehold.events.sqlite import SqliteLog


async def writer(log: SqliteLog, run: str, n: int) -> None:
    entity = Entity("storm", str(n % 5))
    for i in range(1_000_000):
        ids = [f"{run}-{n}-{i}-{part}" for part in "ab"]
        await log.append(
            entity,
            ANY,
            [NewEvent(id, "storm.event", id.encode()) for id in ids],
            timers=[Timer(f"writer-{n}", float(i))],
            checkpoint=Checkpoint(f"writer-{n}", ids[-1], f"{run}-{i}".encode()),
        )
        os.write(1, f"{entity.id} {ids[0]} {ids[1]} {n} {i}\n".encode())


async def main() -> None:
    async with running(SqliteLog(sys.argv[1])) as log, asyncio.TaskGroup() as tasks:
        for n in range(16):
            tasks.create_task(writer(log, sys.argv[2], n))


asyncio.run(main())
