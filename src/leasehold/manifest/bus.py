"""The bus: what everybody in the process is told, in order, each at its own pace.

There is no buffer: a subscription is a cursor on the log. So a slow reader costs nothing, nothing
is ever dropped, and :meth:`Subscription.clone` is a second cursor at the same place, which sees
what its parent has not read yet and everything after. Closing a subscription closes its clones;
closing the bus closes all. What was appended before one subscribed is not seen; whoever wants that
reads the log.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from leasehold.core.clock import Clock
from leasehold.core.service import Service, State, not_running
from leasehold.events.event import Event, Signal, Subscribed
from leasehold.events.log import Log

BATCH = 500
"""Events a cursor reads at once."""

PAUSE = 0.005
"""Seconds a cursor lets news gather before it reads: under load one read serves many events."""


class Bus(Service):
    """Follows the log's signals and wakes the subscriptions."""

    def __init__(self, log: Log, *, clock: Clock | None = None) -> None:
        super().__init__("bus", clock=clock)
        self.log = log
        self._subscriptions: set[Subscription] = set()
        self._seq = 0

    async def start(self) -> None:
        stream = self.log.signals()
        first = await anext(stream)
        assert isinstance(first, Subscribed)
        self._seq = first.seq
        self.spawn(self._follow(stream), name="follow")

    async def stop(self) -> None:
        for subscription in list(self._subscriptions):
            subscription.close()

    async def _follow(self, stream: AsyncIterator[Signal | Subscribed]) -> None:
        async for signal in stream:
            if signal.seq > self._seq:
                self._seq = signal.seq
                for subscription in self._subscriptions:
                    subscription._news.set()

    def subscribe(self) -> Subscription:
        """A cursor that starts with the next event. Kind UNAVAILABLE once the bus is stopping."""
        if self.state is not State.RUNNING:
            raise not_running(self.name)
        return self._open(self._seq, None)

    def _open(self, seq: int, parent: Subscription | None) -> Subscription:
        subscription = Subscription(self, seq, parent)
        self._subscriptions.add(subscription)
        return subscription


class Subscription:
    """Iterate over it for every event in commit order; it ends when it is closed."""

    def __init__(self, bus: Bus, seq: int, parent: Subscription | None) -> None:
        self.seq = seq
        self.done = asyncio.Event()
        self._bus = bus
        self._parent = parent
        self._clones: set[Subscription] = set()
        self._read: deque[Event] = deque()
        self._news = asyncio.Event()
        if parent is not None:
            parent._clones.add(self)

    def clone(self) -> Subscription:
        """A subscription of its own that begins with what this one has not handed out yet."""
        if self.done.is_set() or self._bus.stopping:
            raise not_running(self._bus.name)
        return self._bus._open(self.seq, self)

    def close(self) -> None:
        """End this subscription and its clones; twice is harmless."""
        if self.done.is_set():
            return
        self.done.set()
        self._read.clear()
        self._news.set()
        self._bus._subscriptions.discard(self)
        for clone in list(self._clones):
            clone.close()
        if self._parent is not None:
            self._parent._clones.discard(self)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while not self._read:
            if self.done.is_set():
                raise StopAsyncIteration
            self._news.clear()
            if self.seq < self._bus._seq:
                await self._bus.clock.sleep(PAUSE)
                await self._fill()
            else:
                await self._news.wait()
        if self.done.is_set():
            raise StopAsyncIteration
        event = self._read.popleft()
        self.seq = event.seq
        return event

    async def _fill(self) -> None:
        async for event in self._bus.log.read_all(self.seq, limit=BATCH):
            self._read.append(event)
            if len(self._read) >= BATCH:
                break
