"""The newest events of the busiest entities, kept so that a wake-up need not touch the disk.

Per entity the cache holds a suffix of its history without gaps, so it either answers a read
completely or says that it cannot. It is right only where every append of the log passes through
this process, as with SQLite.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence

from leasehold.events.event import Entity, Event

MAX_EVENTS = 20_000
"""Events kept in all; the entity that was quiet longest goes first."""

MAX_PER_ENTITY = 64
"""Events kept of one entity."""

MAX_BYTES = 16 << 20
"""Payload bytes kept in all."""


class Recent:
    def __init__(self) -> None:
        self._kept: OrderedDict[Entity, deque[Event]] = OrderedDict()
        self._count = 0
        self._bytes = 0

    def add(self, events: Sequence[Event]) -> None:
        """Newly committed events of one entity, in order."""
        entity = events[0].entity
        kept = self._kept.get(entity)
        if kept is None or kept[-1].id != events[0].parent:
            self.forget(entity)
            kept = self._kept[entity] = deque()
        else:
            self._kept.move_to_end(entity)
        for event in events:
            kept.append(event)
            self._count += 1
            self._bytes += len(event.data)
            if len(kept) > MAX_PER_ENTITY:
                self._bytes -= len(kept.popleft().data)
                self._count -= 1
        while self._count > MAX_EVENTS or self._bytes > MAX_BYTES:
            self.forget(next(iter(self._kept)))

    def forget(self, entity: Entity) -> None:
        for event in self._kept.pop(entity, ()):
            self._count -= 1
            self._bytes -= len(event.data)

    def after(self, entity: Entity, tail: str | None) -> list[Event] | None:
        """The events after ``tail``, or None when only the store can tell."""
        kept = self._kept.get(entity)
        if kept is None:
            return None
        found: list[Event] = []
        for event in reversed(kept):
            if event.id == tail:
                found.reverse()
                return found
            found.append(event)
        if kept[0].parent == tail:
            found.reverse()
            return found
        return None

    def newest(self, entity: Entity) -> Event | None:
        kept = self._kept.get(entity)
        return kept[-1] if kept else None
