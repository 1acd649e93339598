"""Limits: each has its slots and its own queue, so that one can never hold up another."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from leasehold.core import metrics
from leasehold.observe.activity import Slot
from leasehold.observe.tasks import Task

READY = metrics.gauge("leasehold_observe_ready", "Activities waiting for a slot", ["limit"])
BUSY = metrics.gauge("leasehold_observe_slots_busy", "Slots taken", ["limit"])
SLOT_WAIT = metrics.histogram(
    "leasehold_observe_slot_wait_seconds", "Time an activity waited for its slot back", ["limit"]
)


class Lane:
    """The slots of one limit and the queue before them. ``run`` starts a task that got one."""

    def __init__(self, name: str, slots: int, run: Callable[[Task, Lane], None]) -> None:
        self.name = name
        self.slots = self.free = slots
        self.queue: deque[Task] = deque()
        self.closed = False
        self._run = run
        self._returning: deque[asyncio.Future[None]] = deque()
        self._ready = READY.labels(name)
        self._busy = BUSY.labels(name)
        self._wait = SLOT_WAIT.labels(name)

    def put(self, task: Task) -> None:
        self.queue.append(task)
        self.dispatch()

    def dispatch(self) -> None:
        """Give free slots away: first to runs that come back, then to the queue."""
        while self.free > 0 and self._returning:
            waiter = self._returning.popleft()
            if not waiter.done():
                self.free -= 1
                waiter.set_result(None)
        while self.free > 0 and self.queue and not self.closed:
            task = self.queue.popleft()
            self.free -= 1
            self._run(task, self)
        self._ready.set(len(self.queue))
        self._busy.set(self.slots - self.free)

    def release(self) -> None:
        self.free += 1
        self.dispatch()

    async def acquire(self) -> None:
        if self.free > 0:
            self.free -= 1
            return
        began = time.monotonic()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._returning.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.release()
            raise
        self._wait.observe(time.monotonic() - began)


class LaneSlot(Slot):
    """The slot of one run: knows whether it is held, so that it is given back exactly once."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._held = True

    def release(self) -> None:
        if self._held:
            self._held = False
            self._lane.release()

    async def acquire(self) -> None:
        if not self._held:
            await self._lane.acquire()
            self._held = True
