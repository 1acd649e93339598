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
from leasehold.events.log import ANY, Standing, Trimmed, VersionConflict, refuse_oversized
from leasehold.events.signals import SignalHub


class MemoryLog:
    """Everything in dictionaries of one process. Durable as long as the process."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or SystemClock()
        self._all: list[Event | None] = []
        self._by_entity: dict[Entity, list[Event]] = {}
        self._ids: dict[tuple[Entity, str], Event] = {}
        self._trimmed: dict[Entity, str | None] = {}
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
        refuse_oversized(entity, events)
        if self._closed:
            raise not_running("event log")
        history = self._by_entity.get(entity, [])
        found = [self._ids.get((entity, new.id)) for new in events]
        head = history[-1].id if history else None
        if parent not in (ANY, head):
            if events and None not in found:
                return [event for event in found if event is not None]
            raise VersionConflict(entity, parent, head)
        committed: list[Event] = []
        fresh = False
        for new, old in zip(events, found, strict=True):
            if old is None:
                old = Event(
                    len(self._all) + 1, entity, new.id, head, new.type, new.data, self.clock.now()
                )
                self._all.append(old)
                self._by_entity.setdefault(entity, []).append(old)
                self._ids[entity, new.id] = old
                head, fresh = new.id, True
            committed.append(old)
        for timer in timers:
            self._set_timer(entity, timer)
        if checkpoint is not None:
            kept = self._checkpoints.setdefault(checkpoint.activity, {})
            if checkpoint.state is None:
                kept.pop(entity, None)
            else:
                kept[entity] = checkpoint
        if fresh:
            last = self._by_entity[entity][-1]
            self._hub.publish([Signal(entity, last.id, last.seq)])
        elif timers:
            self._hub.publish([Signal(entity, head or "", history[-1].seq if history else 0)])
        return committed

    def _set_timer(self, entity: Entity, timer: Timer) -> None:
        key = (entity, timer.name)
        if timer.was is not None and self._timers.get(key) != timer.was:
            return
        if timer.due_at is None:
            self._timers.pop(key, None)
        else:
            self._timers[key] = timer.due_at

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
                if changed.is_set():
                    continue
                if not watch:
                    return
                yield WillBlock(tail)
                await changed.wait()

    def _after(self, entity: Entity, tail: str | None) -> list[Event]:
        history = self._by_entity.get(entity, [])
        if tail is None:
            return list(history)
        if (entity, tail) not in self._ids:
            if tail == self._trimmed.get(entity):
                return list(history)
            raise Trimmed(entity, tail)
        start = len(history)
        while history[start - 1].id != tail:
            start -= 1
        return history[start:]

    async def read_all(self, after_seq: int = 0, *, limit: int = 1000) -> AsyncIterator[Event]:
        for event in self._all[after_seq:]:
            if event is not None:
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
            for signal in await self.changed(start):
                yield signal
            while True:
                for signal in await subscription.next():
                    yield signal

    async def changed(self, after_seq: int) -> list[Signal]:
        newest = {e.entity: Signal(e.entity, e.id, e.seq) for e in self._all[after_seq:] if e}
        return sorted(newest.values(), key=lambda signal: signal.seq)

    async def due_timers(self, until: float, *, limit: int = 1000) -> list[DueTimer]:
        due = [
            DueTimer(entity, name, at) for (entity, name), at in self._timers.items() if at <= until
        ]
        return heapq.nsmallest(limit, due, key=lambda timer: timer.due_at)

    async def next_timer(self, after: float | None = None) -> float | None:
        floor = float("-inf") if after is None else after
        return min((at for at in self._timers.values() if at > floor), default=None)

    async def checkpoints(self, activity: str) -> dict[Entity, Checkpoint]:
        return dict(self._checkpoints.get(activity, {}))

    async def standing(self, activity: str, kind: str) -> AsyncIterator[Sequence[Standing]]:
        saved = self._checkpoints.get(activity, {})
        page: list[Standing] = []
        for entity in {**self._by_entity, **saved}:
            if entity.kind == kind:
                history, known = self._by_entity.get(entity), saved.get(entity)
                head = history[-1].id if history else None
                page.append(
                    (entity.id, head, *((known.tail, known.state) if known else (None, None)))
                )
        yield page

    async def trim(self, entity: Entity, keep_from: str) -> int:
        first = self._ids.get((entity, keep_from))
        if first is None:
            return 0
        history = self._by_entity[entity]
        gone = [event for event in history if event.seq < first.seq]
        if gone:
            self._trimmed[entity] = first.parent
            self._by_entity[entity] = history[len(gone) :]
        for event in gone:
            self._all[event.seq - 1] = None
            del self._ids[entity, event.id]
        return len(gone)

    async def close(self) -> None:
        self._closed = True
