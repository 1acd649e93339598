"""The engine: wakes activities when their entities have news.

One signal subscription feeds a table of (activity, entity) tasks. A task is asleep, ready, running
or waiting to retry; news that arrive during a run make it ready again afterwards, so an entity is
never run twice at once and no wake-up is lost. Each limit has its own queue and its own slots, and
a run gives its slot back while it waits outside, so that waiting can never starve working.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.retry import Backoff
from leasehold.core.service import Service
from leasehold.events.event import (
    Checkpoint,
    DueTimer,
    Entity,
    Signal,
    Subscribed,
    Timer,
    WillBlock,
)
from leasehold.events.log import ANY, Log
from leasehold.observe.activity import Activity, ActivityFactory, Context, Outcome, Reconciler, Slot

log = get_logger(__name__)

RUNS = metrics.counter(
    "leasehold_observe_runs_total", "runs of activities", ["activity", "outcome"]
)
ASLEEP = metrics.gauge("leasehold_observe_tasks", "known activities", ["activity"])
READY = metrics.gauge("leasehold_observe_ready", "activities waiting for a slot", ["limit"])


class ObserveSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many activities run at once."""

    general: Annotated[int, msgspec.Meta(description="runs at once of most activities", ge=1)] = 20
    repo: Annotated[int, msgspec.Meta(description="runs at once of repo activities", ge=1)] = 10
    retry_cap_s: Annotated[
        float, msgspec.Meta(description="longest wait between retries, seconds", gt=0)
    ] = 60.0
    drain_s: Annotated[
        float, msgspec.Meta(description="how long runs may finish at shutdown, seconds", ge=0)
    ] = 5.0


@dataclass(slots=True)
class Task:
    """One activity on one entity."""

    registration: Registration
    entity: Entity
    tail: str | None = None
    saved: bytes | None = None
    activity: Activity | None = None
    state: str = "asleep"
    dirty: bool = False
    timers: list[DueTimer] = field(default_factory=list)
    failures: int = 0
    error: str = ""
    retry: asyncio.TimerHandle | None = None


@dataclass(frozen=True, slots=True)
class Registration:
    name: str
    entity_kind: str
    limit: str
    factory: ActivityFactory
    batch: bool


class _Lane:
    """The slots of one limit and the queue before them."""

    def __init__(self, name: str, slots: int) -> None:
        self.name = name
        self.free = slots
        self.queue: deque[Task] = deque()
        self.returning: deque[asyncio.Future[None]] = deque()


class _LaneSlot(Slot):
    def __init__(self, engine: Engine, lane: _Lane) -> None:
        self._engine = engine
        self._lane = lane

    def release(self) -> None:
        self._lane.free += 1
        self._engine._dispatch(self._lane)

    async def acquire(self) -> None:
        if self._lane.free > 0:
            self._lane.free -= 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lane.returning.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.release()
            # The caller's own release of a slot it holds is still to come.
            self._lane.free -= 1
            raise


class Engine(Service):
    """Register activities, then start it. ``settings`` default to 20 general and 10 repo slots."""

    def __init__(
        self, log: Log, clock: Clock | None = None, settings: ObserveSettings | None = None
    ) -> None:
        super().__init__("observe", clock=clock)
        self.log = log
        self.settings = settings or ObserveSettings()
        self.backoff = Backoff(first=0.05, cap=self.settings.retry_cap_s)
        self._registrations: dict[str, list[Registration]] = {}
        self._tasks_by_entity: dict[Entity, list[Task]] = {}
        self._finished: dict[tuple[str, Entity], str | None] = {}
        self._lanes = {
            "general": _Lane("general", self.settings.general),
            "repo": _Lane("repo", self.settings.repo),
        }
        self._timers_changed = asyncio.Event()

    def register(
        self,
        factory: type[Activity] | ActivityFactory,
        *,
        kind: type[Activity] | None = None,
    ) -> None:
        """Run ``factory(context)`` for every entity of the activity's kind.

        ``factory`` is an activity class, or a callable together with the class in ``kind``.
        """
        cls = kind or factory
        assert isinstance(cls, type)
        assert issubclass(cls, Activity)
        self._registrations.setdefault(cls.entity_kind, []).append(
            Registration(
                cls.name,
                cls.entity_kind,
                cls.limit if cls.limit in self._lanes else "general",
                factory,
                issubclass(cls, Reconciler),
            )
        )

    async def start(self) -> None:
        stream = self.log.signals()
        first = await anext(stream)
        assert isinstance(first, Subscribed)
        for kind, registrations in self._registrations.items():
            heads = dict(await self.log.entities(kind))
            for registration in registrations:
                saved = await self.log.checkpoints(registration.name)
                for entity, head in heads.items():
                    checkpoint = saved.get(entity)
                    if checkpoint is not None and checkpoint.state == b"done":
                        self._finished[registration.name, entity] = checkpoint.tail
                        if checkpoint.tail == head.id:
                            continue
                        checkpoint = None
                    task = self._add(registration, entity)
                    if checkpoint is not None and checkpoint.state is not None:
                        task.tail, task.saved = checkpoint.tail, checkpoint.state
                        if task.tail == head.id:
                            continue
                    self._wake(task)
        self.spawn(self._follow(stream), name="signals")
        self.spawn(self._fire_timers(), name="timers")

    async def stop(self) -> None:
        for tasks in self._tasks_by_entity.values():
            for task in tasks:
                if task.retry:
                    task.retry.cancel()
        running = [t for t in self._spawned if t.get_name().startswith("observe:run")]
        if running:
            await asyncio.wait(running, timeout=self.settings.drain_s)

    async def _follow(self, stream: AsyncIterator[Signal | Subscribed]) -> None:
        async for signal in stream:
            if isinstance(signal, Subscribed):
                continue
            entity, head, _ = signal
            self._timers_changed.set()
            for registration in self._registrations.get(entity.kind, ()):
                self._news(registration, entity, head)

    def _news(self, registration: Registration, entity: Entity, head: str) -> None:
        for task in self._tasks_by_entity.get(entity, ()):
            if task.registration is registration:
                if task.tail != head:
                    self._wake(task)
                return
        if self._finished.get((registration.name, entity)) == head:
            return
        self._wake(self._add(registration, entity))

    def _add(self, registration: Registration, entity: Entity) -> Task:
        task = Task(registration, entity)
        self._tasks_by_entity.setdefault(entity, []).append(task)
        ASLEEP.labels(registration.name).inc()
        return task

    def _forget(self, task: Task) -> None:
        tasks = self._tasks_by_entity[task.entity]
        tasks.remove(task)
        if not tasks:
            del self._tasks_by_entity[task.entity]
        ASLEEP.labels(task.registration.name).dec()

    def _wake(self, task: Task) -> None:
        if task.state == "running":
            task.dirty = True
            return
        if task.state == "ready":
            return
        if task.retry is not None:
            # News may be what the retry waits for.
            task.retry.cancel()
            task.retry = None
        task.state = "ready"
        lane = self._lanes[task.registration.limit]
        lane.queue.append(task)
        READY.labels(lane.name).set(len(lane.queue))
        self._dispatch(lane)

    def _dispatch(self, lane: _Lane) -> None:
        while lane.free > 0 and lane.returning:
            waiter = lane.returning.popleft()
            if not waiter.done():
                lane.free -= 1
                waiter.set_result(None)
        while lane.free > 0 and lane.queue and not self.stopping:
            task = lane.queue.popleft()
            lane.free -= 1
            task.state = "running"
            self.spawn(
                self._run_task(task, lane), name=f"run {task.registration.name} {task.entity}"
            )
        READY.labels(lane.name).set(len(lane.queue))

    async def _run_task(self, task: Task, lane: _Lane) -> None:
        slot = _LaneSlot(self, lane)
        outcome = Outcome.SLEEP
        try:
            task.dirty = False
            outcome = await self._run_activity(task, slot)
            task.failures, task.error = 0, ""
            RUNS.labels(task.registration.name, outcome.value).inc()
        except Exception as error:
            task.failures += 1
            task.error = str(error)
            RUNS.labels(task.registration.name, "failed").inc()
            log.warning(
                "activity.failed",
                activity=task.registration.name,
                entity=str(task.entity),
                failures=task.failures,
                error=task.error,
                code=getattr(error, "code", type(error).__name__),
                exc_info=not isinstance(error, LeaseholdError),
            )
        finally:
            slot.release()
        if self.stopping:
            return
        if task.failures:
            self._retry_later(task)
        elif outcome is Outcome.DONE:
            self._finished[task.registration.name, task.entity] = task.tail
            self._forget(task)
            head = await self.log.head(task.entity)
            if head is not None and head.id != task.tail:
                self._news(task.registration, task.entity, head.id)
        else:
            task.state = "asleep"
            if task.dirty or task.timers:
                self._wake(task)

    def _retry_later(self, task: Task) -> None:
        task.state = "retry"

        def due() -> None:
            task.retry = None
            if not self.stopping:
                self._wake(task)

        delay = self.backoff.delay(task.failures)
        task.retry = asyncio.get_running_loop().call_later(delay, due)

    async def _run_activity(self, task: Task, slot: Slot) -> Outcome:
        registration, entity = task.registration, task.entity
        if task.activity is None:
            context = Context(entity, registration.name, self.log, self.clock)
            activity = registration.factory(context)
            if task.saved is not None:
                activity.restore(task.saved)
            else:
                task.tail = None
            activity.context.slot = slot
            tail = await self._fold(activity, entity, task.tail)
            outcome = await activity.settle()
            task.activity, task.tail, task.saved = activity, tail, None
        else:
            activity = task.activity
            activity.context.slot = slot
            outcome = Outcome.SLEEP
            if registration.batch:
                tail = await self._fold(activity, entity, task.tail)
                outcome = await activity.settle()
                task.tail = tail
            else:
                async for event in self.log.read(entity, after=task.tail):
                    if not isinstance(event, WillBlock):
                        outcome = await activity.react(event)
                        task.tail = event.id
                        if outcome is Outcome.DONE:
                            break
        while task.timers and outcome is not Outcome.DONE:
            outcome = await self._fire(activity, task.timers[0])
            task.timers.pop(0)
        await self._checkpoint(task, activity, outcome)
        return outcome

    async def _fold(self, activity: Activity, entity: Entity, tail: str | None) -> str | None:
        async for event in self.log.read(entity, after=tail):
            if not isinstance(event, WillBlock):
                activity.fold(event)
                tail = event.id
        return tail

    async def _fire(self, activity: Activity, timer: DueTimer) -> Outcome:
        activity.context.armed.clear()
        outcome = await activity.fired(timer.name.partition("/")[2])
        if timer.name not in activity.context.armed:
            await self.log.append(
                timer.entity, ANY, [], timers=[Timer(timer.name, None, timer.due_at)]
            )
        return outcome

    async def _checkpoint(self, task: Task, activity: Activity, outcome: Outcome) -> None:
        state = b"done" if outcome is Outcome.DONE else activity.save()
        if state is None:
            return
        await self.log.append(
            task.entity,
            ANY,
            [],
            checkpoint=Checkpoint(task.registration.name, task.tail, state),
        )

    async def _fire_timers(self) -> None:
        fired: dict[tuple[Entity, str], float] = {}
        while True:
            self._timers_changed.clear()
            now = self.clock.now()
            pending = {}
            for timer in await self.log.due_timers(now):
                key = (timer.entity, timer.name)
                pending[key] = timer.due_at
                if fired.get(key) != timer.due_at:
                    self._timer_due(timer)
            fired = pending
            due = await self.log.next_timer()
            # Timers that fired stay in the table until their activity has handled them.
            wait = None if due is None else max(due - self.clock.now(), 0.05 if due <= now else 0.0)
            try:
                async with self.clock.timeout(wait):
                    await self._timers_changed.wait()
            except TimeoutError:
                pass

    def _timer_due(self, timer: DueTimer) -> None:
        name = timer.name.partition("/")[0]
        for registration in self._registrations.get(timer.entity.kind, ()):
            if registration.name != name:
                continue
            tasks = self._tasks_by_entity.get(timer.entity, [])
            task = next((t for t in tasks if t.registration is registration), None)
            if task is None and (name, timer.entity) in self._finished:
                cancel = Timer(timer.name, None, timer.due_at)
                self.spawn(self.log.append(timer.entity, ANY, [], timers=[cancel]), name="cancel")
                continue
            if task is None:
                task = self._add(registration, timer.entity)
            task.timers.append(timer)
            self._wake(task)

    def tasks(self) -> Mapping[Entity, list[Task]]:
        """What the engine knows, for operators."""
        return self._tasks_by_entity
