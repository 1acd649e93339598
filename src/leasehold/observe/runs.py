"""One run of an activity, and what becomes of one that failed.

The first run folds the history, or restores what was saved and folds what came after; then it
settles. Later runs hand over one event after the other. What it saved is stored with its tail as a
checkpoint, so that the next process need not read again what this one read.

A failing run is thrown away, with the activity it was: the next try folds or restores, and settles,
as after a crash. Tries are spaced by back-off with full jitter; news interrupt the wait. What
cannot succeed until something changes (an event that cannot be read) is *parked*. Errors are stored
beside the activity's checkpoint, for operators and for the next process.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

import msgspec

from leasehold.core import metrics
from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.retry import Backoff
from leasehold.core.service import Service
from leasehold.events.event import Checkpoint, DueTimer, Entity, Timer, WillBlock
from leasehold.events.fenced import FencedLog
from leasehold.events.log import ANY, Log, Trimmed
from leasehold.model.events import Undecodable
from leasehold.observe.activity import Activity, Context, Outcome
from leasehold.observe.lanes import Lane, LaneSlot
from leasehold.observe.settings import ObserveSettings
from leasehold.observe.table import Table
from leasehold.observe.tasks import (
    PARKED,
    PAUSED,
    READY,
    RETRYING,
    RUNNING,
    SLEEPING,
    StoredError,
    Task,
)

log = get_logger(__name__)

DONE_MARK, SAVED_MARK = b"D", b"S"
"""First byte of a checkpoint's state: finished with the entity, or the saved state follows."""

ERRORS = "errors/"
PAUSES = "paused/"
"""Prefixes of checkpoint names under which errors and pauses of an activity are kept."""

SHOWN = 120
"""Characters of an error that are shown; the full text is kept."""

FULL = 10_000
"""Characters of the full text."""

RUNS = metrics.counter(
    "leasehold_observe_runs_total", "Runs of activities", ["activity", "outcome"]
)
RETRIES = metrics.counter("leasehold_observe_retries_total", "Runs tried again", ["activity"])
WAKE_TO_RUN = metrics.histogram(
    "leasehold_observe_wake_to_run_seconds", "From a wake-up to the start of the run", ["limit"]
)
RUN_SECONDS = metrics.histogram(
    "leasehold_observe_run_seconds", "Time of a run, waits included", ["activity"]
)

# Finding the child of a metric costs as much as using it: each is looked up once.
_runs = functools.cache(RUNS.labels)
_run_seconds = functools.cache(RUN_SECONDS.labels)
_wake_to_run = functools.cache(WAKE_TO_RUN.labels)


class Runs:
    """Runs tasks of ``table`` as tasks of ``service``.

    ``fired`` is told of a timer that was handled. With ``epoch`` what an activity appends to its
    own entity carries the epoch its run began with, so a run that outlives the ownership of its
    entity can change nothing any more.
    """

    def __init__(
        self,
        service: Service,
        log: Log,
        table: Table,
        settings: ObserveSettings,
        backoff: Backoff,
        fired: Callable[[DueTimer], None],
        epoch: Callable[[Entity], int | None] | None,
    ) -> None:
        self.service = service
        self.log = log
        self.clock = service.clock
        self.table = table
        self.settings = settings
        self.backoff = backoff
        self.epoch = epoch
        self.running: set[asyncio.Task[None]] = set()
        self._fired = fired

    def start(self, task: Task, lane: Lane) -> None:
        """Run a task that got a slot of ``lane``."""
        if task.state != READY or self.service.stopping:
            lane.free += 1
            return
        if not self.table.ours(task.entity):
            # Another instance took it over; should it come back, its news will wake it.
            lane.free += 1
            task.activity, task.tail = None, task.saved_tail
            self.table.sleep(task)
            return
        try:
            run = self.service.spawn(self._run(task, lane), name=f"run {task.name} {task.entity}")
        except LeaseholdError:  # we are being torn down
            lane.free += 1
            return
        task.state = RUNNING
        self.running.add(run)
        run.add_done_callback(self.running.discard)

    async def _run(self, task: Task, lane: Lane) -> None:
        slot = LaneSlot(lane)
        name = task.registration.name
        outcome = Outcome.SLEEP
        began = self.clock.monotonic()
        _wake_to_run(lane.name).observe(max(0.0, began - task.woken_at))
        failed: Exception | None = None
        try:
            task.dirty = False
            outcome = await self._activity(task, slot)
            if task.error is not None:
                await self.clear_error(task)
            task.failures, task.failed_head = 0, None
            _runs(name, outcome.value).inc()
        except Exception as error:
            failed = error
            _runs(name, "failed").inc()
        finally:
            slot.release()
            _run_seconds(name).observe(self.clock.monotonic() - began)
        if self.service.stopping:
            return
        if failed is not None:
            await self._failed(task, failed)
            if task.paused:
                self.table.pause(task)
        elif outcome is Outcome.DONE:
            self.table.forget(task)
            head = await self.log.head(task.entity)
            if head is not None and head.id != task.tail and task.registration.every:
                self.table.news(task.registration, task.entity, head.id)
        elif task.paused:
            task.state = PAUSED
        elif task.dirty or task.timers:
            task.state = SLEEPING
            self.table.wake(task)
        else:
            self.table.sleep(task)

    def _log_of(self, entity: Entity) -> Log:
        """What a run of ``entity``'s activity appends to, from its start to its end."""
        if self.epoch is None:
            return self.log
        epoch = self.epoch(entity)
        return FencedLog(self.log, lambda other: epoch if other == entity else None)

    async def _activity(self, task: Task, slot: LaneSlot) -> Outcome:
        registration, entity = task.registration, task.entity
        activity = task.activity
        owned = self._log_of(entity)
        if activity is None:
            context = Context(entity, task.name, owned, self.clock, task.option)
            activity = registration.factory(context)
            if task.saved is not None:
                activity.restore(task.saved)
            else:
                task.tail = None
            fresh = True
        else:
            fresh = False
        activity.context.log = owned
        activity.context.slot = slot
        activity.context.failures = task.failures
        outcome = Outcome.SLEEP
        if fresh or registration.batch:
            try:
                tail = await self._fold(activity, entity, task.tail)
            except Trimmed:
                # What we knew is older than what the log still has: begin at its snapshot.
                task.saved = task.saved_tail = None
                raise
            outcome = await activity.settle()
            task.activity, task.tail = activity, tail
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
            cancel = Timer(timer.name, None, was=timer.due_at)
            await activity.context.log.append(timer.entity, ANY, [], timers=[cancel])
        self._fired(timer)
        return outcome

    async def _checkpoint(self, task: Task, activity: Activity, outcome: Outcome) -> None:
        if "\0" in task.key:
            return  # begun again by whoever began it
        if outcome is Outcome.DONE:
            state = DONE_MARK
        else:
            saved = activity.save()
            unchanged = saved == task.saved and task.tail == task.saved_tail
            task.saved, task.saved_tail = saved, task.tail
            if saved is None or unchanged:
                return
            state = SAVED_MARK + saved
        checkpoint = Checkpoint(task.registration.name, task.tail, state)
        await activity.context.log.append(task.entity, ANY, [], checkpoint=checkpoint)

    # -- failures ------------------------------------------------------------------------------

    async def _failed(self, task: Task, error: Exception) -> None:
        task.failures += 1
        task.activity, task.tail = None, task.saved_tail
        # Only a poisoned event is hopeless: others may succeed without the entity changing.
        parked = isinstance(error, Undecodable)
        known = isinstance(error, LeaseholdError)
        log.warning(
            "activity.failed",
            activity=task.name,
            entity=str(task.entity),
            failures=task.failures,
            error=str(error),
            code=getattr(error, "code", type(error).__name__),
            parked=parked,
            exc_info=error if not known and task.failures == 1 else None,
        )
        try:
            # News that the failing run itself caused must not start it again at once.
            head = await self.log.head(task.entity)
            task.failed_head = head.id if head else None
            if parked or task.failures == self.settings.report_after:
                await self._store_error(task, error, parked)
        except LeaseholdError as problem:
            log.warning("activity.error_not_stored", entity=str(task.entity), error=str(problem))
        if self.service.stopping:
            return
        if parked and not task.dirty:
            task.state = PARKED
            return
        RETRIES.labels(task.registration.name).inc()
        delay = self.backoff.delay(task.failures)
        if isinstance(error, LeaseholdError) and error.retry_after:
            delay = max(delay, min(error.retry_after, self.settings.retry_cap_s))
        task.state = RETRYING
        task.retry = asyncio.get_running_loop().call_later(delay, self._retry, task)

    def _retry(self, task: Task) -> None:
        task.retry = None
        if task.state == RETRYING and not self.service.stopping:
            self.table.wake(task)

    async def _store_error(self, task: Task, error: Exception, parked: bool) -> None:
        text = (str(error) or type(error).__name__).encode(errors="replace").decode()
        line = " ".join(text.split())
        task.error = StoredError(
            code=str(getattr(error, "code", type(error).__name__)),
            message=line if len(line) <= SHOWN else line[: SHOWN - 1] + "…",
            full=text[:FULL],
            at=self.clock.now(),
            failures=task.failures,
            parked=parked,
        )
        if "\0" not in task.key:
            state = msgspec.json.encode(task.error)
            await self.mark(ERRORS, task, state)

    async def clear_error(self, task: Task) -> None:
        task.error = None
        if "\0" not in task.key:
            await self.mark(ERRORS, task, None)

    async def mark(self, prefix: str, task: Task, state: bytes | None) -> None:
        """Keep ``state`` beside the activity's checkpoint; None forgets it."""
        mark = Checkpoint(prefix + task.registration.name, task.tail, state)
        await self.log.append(task.entity, ANY, [], checkpoint=mark)
