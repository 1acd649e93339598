"""The workers of one (network, chain id, version): who gets the next task, and who waits.

A worker has *room* while it has fewer tasks than it runs at once plus a small prefetch, so a
busy worker's backlog stays here, where another worker can take it. Tasks that find no room wait in
a bounded queue in which callers take turns; a task that lost its worker goes before all of them.
A pool without any worker, online or coming back, refuses at once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.dispatch import metrics
from leasehold.dispatch.session import Session
from leasehold.dispatch.task import Attempt, Task
from leasehold.dispatch.wire import new_id

PoolKey = tuple[str, str, str]


class Member:
    """A worker's open stream and how many tasks it may be given."""

    __slots__ = ("limit", "session", "worker_id")

    def __init__(self, worker_id: str, session: Session, limit: int) -> None:
        self.worker_id = worker_id
        self.session = session
        self.limit = limit

    @property
    def room(self) -> int:
        return 0 if self.session.closed else self.limit - len(self.session.attempts)


Policy = Callable[["deque[Member]"], Member | None]


def round_robin(members: deque[Member]) -> Member | None:
    """The member whose turn it is, or the next one with room."""
    for _ in range(len(members)):
        member = members[0]
        members.rotate(-1)
        if member.room > 0:
            return member
    return None


def least_outstanding(members: deque[Member]) -> Member | None:
    """The member with the fewest tasks; the one waiting longest among equals."""
    best = min(
        (m for m in members if m.room > 0), key=lambda m: len(m.session.attempts), default=None
    )
    if best is not None:
        members.remove(best)
        members.append(best)
    return best


POLICIES: dict[str, Policy] = {
    "round_robin": round_robin,
    "least_outstanding": least_outstanding,
}


class Pool:
    """``expected`` says how many workers could still come (back) online."""

    def __init__(
        self,
        key: PoolKey,
        *,
        clock: Clock,
        policy: Policy,
        queue_limit: int,
        expected: Callable[[], int],
    ) -> None:
        self.key = key
        self.clock = clock
        self.policy = policy
        self.queue_limit = queue_limit
        self.members: deque[Member] = deque()
        self.online = asyncio.Event()
        self._expected = expected
        self._urgent: deque[Task] = deque()
        self._queues: OrderedDict[str, deque[Task]] = OrderedDict()
        self._queued = 0
        label = "/".join(key)
        self._in_flight = metrics.IN_FLIGHT.labels(label)
        self._queued_gauge = metrics.QUEUED.labels(label)
        self._in_flight.set_function(lambda: sum(m.session.outstanding for m in self.members))
        self._queued_gauge.set_function(lambda: self.queued)

    @property
    def queued(self) -> int:
        """Tasks waiting for room."""
        return self._queued + len(self._urgent)

    # members

    def join(self, member: Member) -> None:
        """A worker came online; it may be given tasks from now on."""
        self.leave(member.worker_id)
        self.members.append(member)
        self.online.set()
        self.pump()

    def leave(self, worker_id: str) -> None:
        """The worker gets nothing new. When it was the last to be hoped for, nobody waits on."""
        for member in list(self.members):
            if member.worker_id == worker_id:
                self.members.remove(member)
        if not self.members:
            self.online.clear()

    def retire(self) -> None:
        """The pool is not used any more: its metrics go with it."""
        for gauge in (metrics.IN_FLIGHT, metrics.QUEUED):
            gauge.remove("/".join(self.key))

    def fail_if_hopeless(self) -> None:
        """With no worker online or coming back, those who wait are told so."""
        if self.members or self._expected():
            return
        for task in [*self._urgent, *(t for q in self._queues.values() for t in q)]:
            task.finish("no_workers", self._no_workers())

    # tasks

    def submit(self, task: Task) -> None:
        """Give the task to a worker, or queue it; LeaseholdError ``no_workers`` or ``busy``."""
        if not self.queued and self._try(task):
            return
        if not self.members and not self._expected():
            raise self._no_workers()
        if self._queued >= self.queue_limit:
            raise LeaseholdError(
                "busy",
                f"all workers of {'/'.join(self.key)} are busy and {self._queued} tasks wait;"
                " try again later",
                kind=Kind.RATE_LIMITED,
                retry_after=1.0,
            )
        self._queues.setdefault(task.call.caller, deque()).append(task)
        self._queued += 1

    def resubmit(self, task: Task) -> None:
        """The task lost its worker: it is next. Accepted tasks are never refused for being many."""
        if not self._try(task):
            self._urgent.append(task)
            self.fail_if_hopeless()

    def forget(self, task: Task) -> None:
        """The task ended while it was waiting."""
        if task in self._urgent:
            self._urgent.remove(task)
            return
        queue = self._queues.get(task.call.caller)
        if queue is not None and task in queue:
            queue.remove(task)
            self._queued -= 1
            if not queue:
                del self._queues[task.call.caller]

    def pump(self) -> None:
        """Give waiting tasks to workers with room."""
        while self._urgent and self._try(self._urgent[0]):
            self._urgent.popleft()
        while not self._urgent and self._queues:
            caller, queue = next(iter(self._queues.items()))
            if not self._try(queue[0]):
                return
            queue.popleft()
            self._queued -= 1
            if queue:
                self._queues.move_to_end(caller)
            else:
                del self._queues[caller]

    def _try(self, task: Task) -> bool:
        member = self.policy(self.members)
        if member is None:
            return False
        now = self.clock.monotonic()
        number = task.attempts + 1
        # The first attempt goes under the task's own id; each later one under a fresh one, which is
        # what keeps a stale worker's responses out.
        attempt = Attempt(task.id if number == 1 else new_id(), number, task, member.session, now)
        if number == 1:
            metrics.QUEUE_WAIT.observe(now - task.accepted_at)
        task.begin(attempt)
        member.session.give(attempt)
        return True

    def _no_workers(self) -> LeaseholdError:
        return LeaseholdError(
            "no_workers",
            f"no worker serves {'/'.join(self.key)}; start one or wait for it to announce itself",
            kind=Kind.UNAVAILABLE,
            path="/".join(self.key),
            retry_after=5.0,
        )
