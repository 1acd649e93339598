"""Group commit: appends of a loop turn are one batch; while it is written the next one gathers.

The backend says how a batch is written (:meth:`GroupCommit._submit`) and calls :meth:`_done` in
the loop when it is durable. Callers wait for room when too many appends are pending.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Sequence

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.service import Service, State, not_running
from leasehold.events.batch import Request
from leasehold.events.event import Checkpoint, Entity, Event, NewEvent, Signal, Timer
from leasehold.events.log import refuse_oversized
from leasehold.events.settings import EventsSettings
from leasehold.events.signals import SignalHub

BATCH_EVENTS = 5_000
"""Events after which a batch is closed; a single larger append is a batch of its own."""

BATCH_SIZES = metrics.histogram(
    "leasehold_events_batch_appends",
    "Appends made durable by one fsync",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
)
APPEND_SECONDS = metrics.histogram(
    "leasehold_events_append_seconds", "Time from the call of an append to its answer"
)


class GroupCommit(Service):
    """The part of a log that gathers appends and tells who waits for news."""

    def __init__(self, clock: Clock | None, settings: EventsSettings | None) -> None:
        super().__init__("event log", clock=clock)
        self.settings = settings or EventsSettings()
        self._pending: list[Request] = []
        self._busy = False
        self._closed = False
        self._room = asyncio.Semaphore(self.settings.max_pending_appends)
        self._idle = asyncio.Event()
        self._idle.set()
        self._hub = SignalHub()

    @abstractmethod
    def _submit(self, batch: list[Request]) -> None:
        """Start to write ``batch``; must not block."""

    async def stop(self) -> None:
        self._closed = True
        await self._idle.wait()

    async def close(self) -> None:
        await self.shutdown()

    async def append(
        self,
        entity: Entity,
        parent: str | None,
        events: Sequence[NewEvent],
        *,
        timers: Sequence[Timer] = (),
        checkpoint: Checkpoint | None = None,
        epoch: int | None = None,
    ) -> list[Event]:
        refuse_oversized(entity, events)
        began = self.clock.monotonic()
        async with self._room:
            if self._closed or self.state not in (State.RUNNING, State.STOPPING):
                raise not_running(self.name)
            loop = asyncio.get_running_loop()
            future: asyncio.Future[list[Event]] = loop.create_future()
            self._pending.append(Request(entity, parent, events, timers, checkpoint, future, epoch))
            if not self._busy:
                self._busy = True
                self._idle.clear()
                loop.call_soon(self._hand_over)
            result = await future
        APPEND_SECONDS.observe(self.clock.monotonic() - began)
        return result

    def _hand_over(self) -> None:
        size = taken = 0
        for request in self._pending:
            size += len(request.events) + 1
            if taken and size > BATCH_EVENTS:
                break
            taken += 1
        batch, self._pending = self._pending[:taken], self._pending[taken:]
        self._submit(batch)

    def _done(self, batch: list[Request]) -> None:
        """Answer the callers, tell the readers, hand over what gathered."""
        signals = []
        for request in batch:
            if request.fresh:
                last = request.fresh[-1]
                self._committed(request.fresh)
                signals.append(Signal(request.entity, last.id, last.seq))
            elif request.timers and request.error is None:
                signals.append(Signal(request.entity, request.head, request.head_seq))
            if request.future.done():
                continue
            if request.error is not None:
                request.future.set_exception(request.error)
            else:
                request.future.set_result(request.result)
        if signals:
            self._hub.publish(signals)
        BATCH_SIZES.observe(len(batch))
        if self._pending:
            self._hand_over()
        else:
            self._busy = False
            self._idle.set()

    def _committed(self, events: Sequence[Event]) -> None:
        """Events of one entity that are durable now."""
