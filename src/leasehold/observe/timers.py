"""Fires timers: hands those that are due to the activities they belong to.

A timer that fired stays in the log's table until its activity has handled it, and is handed over
again by the next process. One of an activity that has finished is cancelled.
"""

from __future__ import annotations

import asyncio

from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.service import Service
from leasehold.events.event import DueTimer, Entity, Timer
from leasehold.events.log import ANY, Log
from leasehold.observe.table import Table
from leasehold.observe.tasks import task_key

PAGE = 1000
"""Timers fetched at once."""

PAUSE = 0.02
"""Seconds between two looks at the timers under load."""

log = get_logger(__name__)


class Timers:
    """Wakes tasks of ``table``; ``run`` is a task of ``service``."""

    def __init__(self, service: Service, log: Log, table: Table) -> None:
        self.service = service
        self.clock = service.clock
        self.log = log
        self.table = table
        self._changed = asyncio.Event()
        self._fired: dict[tuple[Entity, str], float] = {}

    def look(self) -> None:
        """Some timer may have been set or cancelled."""
        self._changed.set()

    def forget(self) -> None:
        """Hand over again whatever is due: some may be ours that were not."""
        self._fired.clear()
        self._changed.set()

    def handled(self, timer: DueTimer) -> None:
        self._fired.pop((timer.entity, timer.name), None)

    async def run(self) -> None:
        limit = PAGE
        while True:
            self._changed.clear()
            try:
                now = self.clock.now()
                due = await self.log.due_timers(now, limit=limit)
                full = len(due) == limit
                pending, handed = {}, 0
                for timer in due:
                    key = (timer.entity, timer.name)
                    pending[key] = timer.due_at
                    if self._fired.get(key) != timer.due_at:
                        self._due(timer)
                        handed += 1
                self._fired = pending
                # A page of timers that others have yet to handle must not hide what follows.
                limit = PAGE if not full else limit if handed else 2 * limit
                upcoming = await self.log.next_timer(after=now)
            except LeaseholdError as error:
                log.warning("observe.timers_unread", error=str(error))
                await self.clock.sleep(1.0)
                continue
            # Timers that fired stay in the table until their activity has handled them.
            wait = None if upcoming is None else max(0.0, upcoming - self.clock.now())
            if full:
                wait = PAUSE
            try:
                async with self.clock.timeout(wait):
                    await self._changed.wait()
                await self.clock.sleep(PAUSE)
            except TimeoutError:
                pass

    def _due(self, timer: DueTimer) -> None:
        if not self.table.ours(timer.entity):
            return
        name, _, extra = timer.name.partition("/")[0].partition("#")
        registration = self.table.registrations.get(name)
        if registration is None or registration.entity_kind != timer.entity.kind:
            return
        key = task_key(timer.entity.id, extra)
        if key in registration.done or (
            not registration.every
            and key not in registration.active
            and key not in registration.asleep
        ):
            self.service.spawn(self._cancel(timer), name="cancel")
            return
        task = self.table.activate(registration, key)
        task.timers.append(timer)
        self.table.wake(task)

    async def _cancel(self, timer: DueTimer) -> None:
        cancel = Timer(timer.name, None, was=timer.due_at)
        try:
            await self.log.append(timer.entity, ANY, [], timers=[cancel])
        except LeaseholdError as error:
            self.handled(timer)  # so that the next look finds it again
            log.warning("observe.timer_not_cancelled", error=str(error))
