"""A log in memory, for simulators and users' own tests. Passes the same suite as the others."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Sequence

from leasehold.core.clock import Clock, SystemClock
from leasehold.core.service import not_running
from leasehold.events.event import (
    Checkpoint,
    DueTimer,
    Entity,
    Event,
    Head,
    NewEvent,
    Signal,
    Subscribed,
    Timer,
    WillBlock,
)
from leasehold.events.log import ANY, VersionConflict
from leasehold.events.signals import SignalHub


class MemoryLog:
    """Everything in dictionaries of one process. Durable as long as the process."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or SystemClock()
        self._all: list[Event] = []
        self._by_entity: dict[Entity, list[Event]] = {}
        self._ids: dict[tuple[Entity, str], Event] = {}
        self._timers: dict[tuple[Entity, str], float] = {}
        self._checkpoints: dict[str, dict[Entity, Checkpoint]] = {}
        self._hub = SignalHub()
        self._closed = False

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
        if self._closed:
            raise not_running("event log")
        history = self._by_entity.get(entity, [])
        known = [self._ids[key] for e in events if (key := (entity, e.id)) in self._ids]
        if events and len(known) == len(events):
            return known
        head = history[-1].id if history else None
        if parent not in (ANY, head):
            raise VersionConflict(entity, parent, head)
        committed = []
        for new in events:
            event = Event(
                len(self._all) + 1, entity, new.id, head, new.type, new.data, self.clock.now()
            )
            self._all.append(event)
            self._by_entity.setdefault(entity, []).append(event)
            self._ids[entity, new.id] = event
            committed.append(event)
            head = new.id
        for timer in timers:
            if timer.due_at is None:
                if timer.only_if in (None, self._timers.get((entity, timer.name))):
                    self._timers.pop((entity, timer.name), None)
            else:
                self._timers[entity, timer.name] = timer.due_at
        if checkpoint is not None:
            kept = self._checkpoints.setdefault(checkpoint.activity, {})
            if checkpoint.state is None:
                kept.pop(entity, None)
            else:
                kept[entity] = checkpoint
        if committed:
            last = committed[-1]
            self._hub.publish([Signal(entity, last.id, last.seq)])
        elif timers:
            self._hub.publish([Signal(entity, head or "", len(self._all))])
        return committed

    async def read(
        self, entity: Entity, after: str | None = None, *, watch: bool = False
    ) -> AsyncIterator[Event | WillBlock]:
        tail = after
        with self._hub.watch(entity) as changed:
            while True:
                changed.clear()
                for event in self._after(entity, tail):
                    yield event
                    tail = event.id
                if not watch:
                    return
                if self._after(entity, tail):
                    continue
                yield WillBlock(tail)
                await changed.wait()

    def _after(self, entity: Entity, tail: str | None) -> list[Event]:
        history = self._by_entity.get(entity, [])
        if tail is None:
            return list(history)
        known = self._ids.get((entity, tail))
        if known is None:
            raise VersionConflict(entity, tail, history[-1].id if history else None)
        return [event for event in history if event.seq > known.seq]

    async def read_all(self, after_seq: int = 0, *, limit: int = 1000) -> AsyncIterator[Event]:
        for event in self._all[after_seq:]:
            yield event

    async def head(self, entity: Entity) -> Head | None:
        history = self._by_entity.get(entity)
        return Head(history[-1].id, history[-1].seq) if history else None

    async def last_seq(self) -> int:
        return len(self._all)

    async def entities(self, kind: str, prefix: str = "") -> list[tuple[Entity, Head]]:
        return [
            (entity, Head(history[-1].id, history[-1].seq))
            for entity, history in self._by_entity.items()
            if entity.kind == kind and entity.id.startswith(prefix)
        ]

    async def signals(self, after_seq: int | None = None) -> AsyncIterator[Signal | Subscribed]:
        with self._hub.subscribe() as subscription:
            start = len(self._all) if after_seq is None else after_seq
            yield Subscribed(start)
            missed = {e.entity: Signal(e.entity, e.id, e.seq) for e in self._all[start:]}
            for signal in missed.values():
                yield signal
            while True:
                for signal in await subscription.next():
                    yield signal

    async def due_timers(self, until: float, *, limit: int = 1000) -> list[DueTimer]:
        due = [
            DueTimer(entity, name, at) for (entity, name), at in self._timers.items() if at <= until
        ]
        return heapq.nsmallest(limit, due, key=lambda timer: timer.due_at)

    async def next_timer(self) -> float | None:
        return min(self._timers.values(), default=None)

    async def checkpoints(self, activity: str) -> dict[Entity, Checkpoint]:
        return dict(self._checkpoints.get(activity, {}))

    async def close(self) -> None:
        self._closed = True
