"""The engine: wakes activities when their entities have news.

One signal subscription feeds a table of activities (see ``table``). Signals are only hints: every
so often the engine asks the log what changed and wakes what was missed. Each limit has its own
queue and slots (``lanes``) and a run (``runs``) gives its slot back while it waits outside, so that
waiting can never starve working. ``timers`` wakes activities at times they asked for; through
``operators`` people look in and intervene.

At a start every activity is put to sleep where its checkpoint says, and those whose entities moved
on meanwhile are woken: a restart costs what changed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Set
from typing import Any

import msgspec

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.retry import Backoff
from leasehold.core.service import Service
from leasehold.events.event import Entity, Signal, Subscribed
from leasehold.events.log import Log
from leasehold.observe.activity import Activity, ActivityFactory
from leasehold.observe.lanes import Lane
from leasehold.observe.operators import Operators
from leasehold.observe.runs import DONE_MARK, ERRORS, PAUSES, Runs
from leasehold.observe.settings import ObserveSettings
from leasehold.observe.table import Table
from leasehold.observe.tasks import Registration, Sleeper, StoredError, Task, task_key
from leasehold.observe.timers import Timers

__all__ = ["Engine", "ObserveSettings"]

log = get_logger(__name__)

RESUBSCRIBE = Backoff(first=0.2, cap=15.0)
"""Waits after the signal stream broke; the cap is nog's fixed wait."""

MISSED = metrics.counter(
    "leasehold_observe_missed_signals_total", "Wake-ups that only the resync found"
)


class Engine(Service):
    """Register activities, then start it.

    ``rng`` is for reproducible runs. Where several instances share a log, ``owns`` says which
    entities this one answers for (default: all) and ``epoch`` with which number (see
    ``events.partitions``); call :meth:`rescan` when it gained some.
    """

    def __init__(
        self,
        log: Log,
        clock: Clock | None = None,
        settings: ObserveSettings | None = None,
        *,
        rng: random.Random | None = None,
        owns: Callable[[Entity], bool] | None = None,
        epoch: Callable[[Entity], int | None] | None = None,
    ) -> None:
        super().__init__("observe", clock=clock)
        self.log = log
        self.settings = settings or ObserveSettings()
        self.stop_deadline = self.settings.drain_s + 5.0
        backoff = Backoff(
            first=self.settings.retry_first_s,
            cap=self.settings.retry_cap_s,
            rng=rng or random.Random(),
        )
        self.table = Table(self.clock, self.settings, self._start, owns)
        self.timers = Timers(self, log, self.table)
        self.runs = Runs(self, log, self.table, self.settings, backoff, self.timers.handled, epoch)
        self.operators = Operators(self.table, self.runs)
        self._seen = 0

    def _start(self, task: Task, lane: Lane) -> None:
        self.runs.start(task, lane)

    # -- registering ---------------------------------------------------------------------------

    def register(
        self,
        factory: type[Activity] | ActivityFactory,
        *,
        kind: type[Activity] | None = None,
        every: bool = True,
    ) -> None:
        """Run ``factory(context)`` for every entity of the activity's kind.

        ``factory`` is an activity class, or a callable together with the class in ``kind``. With
        ``every=False`` only what :meth:`begin` is called for runs.
        """
        cls = kind or factory
        assert isinstance(cls, type)
        assert issubclass(cls, Activity)
        self.table.register(factory, cls, every=every)

    def begin(self, name: str, id: str, *, key: str = "", option: Any = None) -> None:
        """Start the activity ``name`` on the entity ``id``; one that exists is left alone.

        ``key`` tells several activities of one name on one entity apart. Whoever begins
        activities begins them again after a restart: only those without a key are kept.
        """
        registration = self.table.registrations[name]
        wanted = task_key(id, key)
        if wanted in registration.active or wanted in registration.asleep:
            return
        task = self.table.activate(registration, wanted)
        task.option = option
        self.table.wake(task)

    def finished(self, name: str, id: str, *, key: str = "") -> asyncio.Event:
        """Set when that activity has finished; at once when there is none."""
        registration = self.table.registrations[name]
        wanted = task_key(id, key)
        if wanted not in registration.active and wanted not in registration.asleep:
            over = asyncio.Event()
            over.set()
            return over
        task = self.table.activate(registration, wanted)
        if task.done is None:
            task.done = asyncio.Event()
        return task.done

    # -- lifecycle -----------------------------------------------------------------------------

    async def start(self) -> None:
        stream = self.log.signals()
        first = await anext(stream)
        assert isinstance(first, Subscribed)
        self._seen = first.seq
        for registration in self.table.registrations.values():
            await self._load(registration)
        self.spawn(self._follow(stream), name="signals")
        self.spawn(self._resync(), name="resync")
        self.spawn(self.timers.run(), name="timers")

    async def _load(self, registration: Registration) -> None:
        """Put every known activity to sleep where it was, and wake those with news."""
        paused = {e.id for e in await self.log.checkpoints(PAUSES + registration.name)}
        await self._wake_changed(registration, paused)
        for entity, checkpoint in (await self.log.checkpoints(ERRORS + registration.name)).items():
            task = self.table.activate(registration, entity.id)
            task.error = msgspec.json.decode(checkpoint.state or b"", type=StoredError)
            self.table.wake(task)
        self.table.count(registration)

    async def _wake_changed(
        self, registration: Registration, paused: Set[str] = frozenset()
    ) -> None:
        """Put every activity to sleep as its checkpoint says, and wake those with news."""
        kind, active = registration.entity_kind, registration.active
        every, eager = registration.every, registration.eager
        asleep, done = registration.asleep, registration.done
        async for page in self.log.standing(registration.name, kind):
            for id, head, tail, state in page:
                if state is not None and id not in active:
                    # What we kept of it, if it was not ours meanwhile, is old.
                    if state[:1] != DONE_MARK:
                        asleep[id] = Sleeper(tail, state[1:])
                    else:
                        asleep.pop(id, None)
                        done[id] = tail
                    if tail == head and not eager and id not in paused:
                        continue  # most of them, after most restarts: nothing is new
                if id in paused:
                    self.table.pause(self.table.activate(registration, id))
                if eager and id in asleep:
                    if self.table.ours(Entity(kind, id)):
                        self.table.wake(self.table.activate(registration, id))
                elif head is not None and (every or id in asleep):
                    self.table.news(registration, Entity(kind, id), head)

    async def stop(self) -> None:
        for lane in self.table.lanes.values():
            lane.closed = True
        for registration in self.table.registrations.values():
            for task in registration.active.values():
                if task.retry is not None:
                    task.retry.cancel()
        if self.runs.running:
            await asyncio.wait(self.runs.running, timeout=self.settings.drain_s)

    # -- news ----------------------------------------------------------------------------------

    async def _follow(self, stream: AsyncIterator[Signal | Subscribed]) -> None:
        failures = 0
        while True:
            try:
                async for signal in stream:
                    failures = 0
                    if isinstance(signal, Signal):
                        self.timers.look()
                        if signal.head:
                            self.table.signal(signal.entity, signal.head)
            except LeaseholdError as error:
                log.warning("observe.signals_lost", error=str(error))
            failures += 1
            await self.clock.sleep(RESUBSCRIBE.delay(failures))
            stream = self.log.signals(self._seen)

    async def _resync(self) -> None:
        """Wake what a lost signal should have woken; costs what changed since the last look."""
        while True:
            await self.clock.sleep(self.settings.resync_s)
            try:
                newest = await self.log.last_seq()
                if newest == self._seen:
                    continue
                for signal in await self.log.changed(self._seen):
                    if self.table.signal(signal.entity, signal.head):
                        MISSED.inc()
                self._seen = newest
                self.timers.look()
            except LeaseholdError as error:
                log.warning("observe.resync_failed", error=str(error))

    async def rescan(self) -> None:
        """Look at every entity again: some may be ours that were another instance's before."""
        for registration in self.table.registrations.values():
            await self._wake_changed(registration)
        self.timers.forget()
