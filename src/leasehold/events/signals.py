"""Who wants to know: fans signals of committed events out inside one process.

A subscription holds one pending signal per entity, so a slow reader costs memory proportional to
the number of changed entities, not of events, and never blocks the writer. An append of timers
alone signals the entity with the head it already had.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

from leasehold.events.event import Entity, Signal


class Subscription:
    """The pending signals of one subscriber."""

    def __init__(self) -> None:
        self._pending: dict[Entity, Signal] = {}
        self._ready = asyncio.Event()

    def put(self, signals: Sequence[Signal]) -> None:
        for signal in signals:
            self._pending[signal.entity] = signal
        self._ready.set()

    async def next(self) -> list[Signal]:
        """Wait for news and take all of it."""
        await self._ready.wait()
        self._ready.clear()
        taken = list(self._pending.values())
        self._pending.clear()
        return taken


class SignalHub:
    """Publish from the loop's thread only."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self._watchers: dict[Entity, set[asyncio.Event]] = {}

    def publish(self, signals: Sequence[Signal]) -> None:
        for signal in signals:
            for event in self._watchers.get(signal.entity, ()):
                event.set()
        for subscription in self._subscriptions:
            subscription.put(signals)

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        subscription = Subscription()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    @contextlib.contextmanager
    def watch(self, entity: Entity) -> Iterator[asyncio.Event]:
        changed = asyncio.Event()
        self._watchers.setdefault(entity, set()).add(changed)
        try:
            yield changed
        finally:
            waiting = self._watchers[entity]
            waiting.discard(changed)
            if not waiting:
                del self._watchers[entity]
