"""One open stream to a worker.

Two queues lead out: *control* (PING, CANCEL, CREDIT) and tasks; control goes first, so a pong is
late only when the worker is. One task writes, one reads, one pings: a worker that misses two
pings in a row is gone, as is one whose stream ends. Then everything given to it is *lost*, once.

The session knows who waits for which id. A response for an id nobody waits for is counted: *late*
when the id was known not long ago, *unknown* otherwise.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

import msgspec

from leasehold.core.clock import Clock
from leasehold.core.logs import get_logger
from leasehold.dispatch import metrics
from leasehold.dispatch.task import Attempt, is_refusal
from leasehold.dispatch.transport import LinkClosed, WorkerLink
from leasehold.dispatch.wire import (
    BATCH,
    BATCH_BYTES,
    CANCEL,
    CREDIT,
    GOODBYE,
    PING,
    PONG,
    Grant,
    Request,
    new_id,
)

REMEMBERED = 1024
"""Ids of ended tasks kept per stream, to tell late responses from unknown ones."""

MISSES = 2
"""Pings in a row without a pong until the worker is gone."""

log = get_logger(__name__)


class Session:
    """Run :meth:`run` in a task of your own; it returns when the stream has ended.

    ``on_lost(attempt, started)`` is told of each attempt that cannot end here any more,
    ``on_free()`` when the worker can take another task, ``on_goodbye()`` when it drains.
    """

    def __init__(
        self,
        link: WorkerLink,
        *,
        clock: Clock,
        sender: str,
        heartbeat: float,
        on_lost: Callable[[Attempt, bool], None],
        on_free: Callable[[], None],
        on_goodbye: Callable[[], None],
    ) -> None:
        self.id = new_id()
        self.link = link
        self.clock = clock
        self.sender = sender
        self.heartbeat = heartbeat
        self.attempts: dict[str, Attempt] = {}
        self.sent = 0
        self.last_send = 0.0
        self.latency = 0.0
        self.closed = False
        self.reason = "stream has ended"
        self._on_lost = on_lost
        self._on_free = on_free
        self._on_goodbye = on_goodbye
        self._control: deque[Request] = deque()
        self._tasks: deque[Attempt] = deque()
        self._wake = asyncio.Event()
        self._pings: dict[str, asyncio.Future[None]] = {}
        self._forgotten: OrderedDict[str, None] = OrderedDict()
        self._ended = asyncio.Event()

    @property
    def outstanding(self) -> int:
        """Tasks given to this worker that have not ended."""
        return len(self.attempts)

    async def run(self) -> None:
        """Serve the stream until it ends, then lose what is still open. Never raises for a peer."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(part, name=f"session:{self.id}")
                for part in (self._write(), self._read(), self._beat(), self._ended.wait())
            ]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self.closed = True
                self._lose_all()
                for task in tasks:
                    task.cancel()
                await self.link.close()

    def end(self) -> None:
        """Close the stream."""
        self.closed = True
        self._ended.set()

    def _lose_all(self) -> None:
        for waiting in self._pings.values():
            waiting.cancel()  # a ping that was not answered is not a pong
        self._pings.clear()
        unsent = {attempt.id for attempt in self._tasks}
        self._tasks.clear()
        lost, self.attempts = self.attempts, {}
        for attempt in lost.values():
            self._on_lost(attempt, attempt.id not in unsent)

    # tasks

    def give(self, attempt: Attempt) -> None:
        """Send the attempt's task to the worker."""
        self.attempts[attempt.id] = attempt
        self._tasks.append(attempt)
        self.last_send = self.clock.now()
        self._wake.set()

    def drop(self, attempt: Attempt, *, cancel: bool) -> None:
        """Nobody waits for the attempt any more; with ``cancel`` the worker is told."""
        if self.attempts.pop(attempt.id, None) is None:
            return
        self._remember(attempt.id)
        if attempt in self._tasks:
            self._tasks.remove(attempt)
        elif cancel and "cancel" in self.link.hello.features and not self.closed:
            self._send_control(CANCEL, attempt.id.encode())
        self._on_free()

    def grant(self, id: str, n: int) -> None:
        """Let the worker send ``n`` more responses of the task."""
        if "credit" in self.link.hello.features and id in self.attempts:
            self._send_control(CREDIT, msgspec.json.encode(Grant(id, n)))

    def _send_control(self, type_: str, payload: bytes = b"") -> str:
        request = Request(new_id(), type_, payload, self.sender)
        self._control.append(request)
        self._wake.set()
        return request.id

    # pings

    async def ping(self, timeout: float) -> float:
        """Seconds of one PING to PONG; TimeoutError, or LinkClosed when the stream ends first."""
        if self.closed:
            raise LinkClosed(self.reason)
        began = self.clock.monotonic()
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        id_ = self._send_control(PING)
        self._pings[id_] = answered
        try:
            async with self.clock.timeout(timeout):
                await asyncio.wait({answered})
        finally:
            self._pings.pop(id_, None)
        if answered.cancelled():
            raise LinkClosed(self.reason)
        self.latency = self.clock.monotonic() - began
        metrics.PING_TIME.observe(self.latency)
        return self.latency

    async def _beat(self) -> None:
        misses = 0
        while misses < MISSES:
            await self.clock.sleep(self.heartbeat)
            try:
                await self.ping(self.heartbeat)
                misses = 0
            except TimeoutError:
                misses += 1
            except LinkClosed:
                return
        log.warning("worker.silent", peer=self.link.hello.peer, misses=misses)

    # the stream

    async def _write(self) -> None:
        link, control, tasks = self.link, self._control, self._tasks
        try:
            while True:
                if control or tasks:
                    await link.send(*self._next())
                else:
                    self._wake.clear()
                    await self._wake.wait()
        except LinkClosed as reason:
            self._broke(reason)

    def _next(self) -> list[Request]:
        """What goes into the next message: as much as the worker takes in one."""
        control, tasks = self._control, self._tasks
        limit = BATCH if "batch" in self.link.hello.features else 1
        batch: list[Request] = []
        size = 0
        while control and len(batch) < limit:
            batch.append(control.popleft())
        while tasks and len(batch) < limit and size < BATCH_BYTES:
            request = self._request_of(tasks.popleft())
            size += len(request.payload)
            batch.append(request)
            self.sent += 1
        return batch

    def _broke(self, reason: LinkClosed) -> None:
        self.reason = str(reason)
        log.debug("stream.ended", peer=self.link.hello.peer, reason=self.reason)

    def _request_of(self, attempt: Attempt) -> Request:
        task = attempt.task
        call = task.call
        request = Request(attempt.id, call.type, call.payload, self.sender)
        features = self.link.hello.features
        if "timeout" in features:
            request.timeout = task.remaining
            request.attempt = attempt.number
        if "credit" in features:
            request.credit = task.window
        return request

    async def _read(self) -> None:
        link = self.link
        attempts = self.attempts
        while True:
            try:
                response = await link.receive()
            except LinkClosed as reason:
                self._broke(reason)
                return
            if response is None:
                return
            attempt = attempts.get(response.id)
            if attempt is not None:
                if attempt.next_order == 0:
                    metrics.DISPATCH_TIME.observe(self.clock.monotonic() - attempt.given_at)
                if is_refusal(response):
                    self._refused(attempt)
                else:
                    attempt.task.deliver(attempt, response)
            elif response.type == PONG:
                answered = self._pings.get(response.id)
                if answered is not None and not answered.done():
                    answered.set_result(None)
            elif response.type == GOODBYE:
                self._on_goodbye()
            elif response.id in self._forgotten:
                metrics.LATE.inc()
            else:
                metrics.REJECTED.labels("unknown_id").inc()

    def _refused(self, attempt: Attempt) -> None:
        del self.attempts[attempt.id]
        self._remember(attempt.id)
        self._on_lost(attempt, False)
        self._on_free()

    def _remember(self, id: str) -> None:
        self._forgotten[id] = None
        if len(self._forgotten) > REMEMBERED:
            self._forgotten.popitem(last=False)
