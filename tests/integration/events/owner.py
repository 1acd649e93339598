"""One of several provider instances on one PostgreSQL. Made to be killed.

``python owner.py URL NAME TTL``: answers each ``asked`` event of its entities with ``answered``.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import ClassVar

from leasehold.core import logs
from leasehold.core.service import running
from leasehold.events.event import Event, NewEvent
from leasehold.events.log import ANY
from leasehold.events.partitions import Partitions
from leasehold.events.postgres import PostgresLog
from leasehold.observe.activity import Outcome, Reconciler
from leasehold.observe.engine import Engine


class Answer(Reconciler):
    name: ClassVar[str] = "answer"
    entity_kind: ClassVar[str] = "question"

    def __init__(self, context: object) -> None:
        super().__init__(context)  # type: ignore[arg-type]
        self.open: set[str] = set()

    def fold(self, event: Event) -> None:
        if event.type == "asked":
            self.open.add(event.id)
        else:
            self.open.discard(event.id.removeprefix("re-"))

    async def settle(self) -> Outcome:
        for id in sorted(self.open):
            new = NewEvent(f"re-{id}", "answered", sys.argv[2].encode())
            await self.context.log.append(self.entity, ANY, [new])
        return Outcome.SLEEP


async def main() -> None:
    logs.configure("error")
    url, _, ttl = sys.argv[1:]
    async with running(PostgresLog(url)) as log:
        partitions = Partitions(log, ttl=float(ttl))
        engine = Engine(log, owns=partitions.owns, epoch=partitions.epoch)
        engine.register(Answer)
        partitions.gained = engine.rescan
        async with running(engine), running(partitions):
            os.write(1, b"ready\n")
            await asyncio.Event().wait()


asyncio.run(main())
