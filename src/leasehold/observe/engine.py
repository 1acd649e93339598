"""The engine: wakes activities when their entities have news.

One signal subscription feeds a table of tasks. A task is sleeping, ready, running, or waiting to
try again; news that arrive during a run make it ready again afterwards, so an entity is never run
twice at once and no wake-up is lost. Signals are only hints: every so often the engine asks the
log what changed and wakes what was missed. Each limit has its own queue and slots (see ``lanes``)
and a run gives its slot back while it waits outside, so that waiting can never starve working.

A failing run is thrown away, with the activity it was: the next try folds or restores, and
settles, as after a crash. Tries are spaced by back-off with full jitter; news interrupt the wait.
What cannot succeed until something changes (an event that cannot be read) is *parked*. Errors are
stored beside the activity's checkpoint, for operators and for the next process.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
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
from leasehold.events.log import ANY, Log, Trimmed
from leasehold.model.events import Undecodable
from leasehold.observe.activity import Activity, ActivityFactory, Context, Outcome, Reconciler
from leasehold.observe.lanes import Lane, LaneSlot
from leasehold.observe.settings import ObserveSettings
from leasehold.observe.tasks import (
    PARKED,
    PAUSED,
    READY,
    RETRYING,
    RUNNING,
    SLEEPING,
    Registration,
    Sleeper,
    StoredError,
    Task,
    task_key,
)

__all__ = ["Engine", "ObserveSettings"]

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

TIMER_PAGE = 1000
TIMER_PAUSE = 0.02
"""Seconds between two looks at the timers under load."""

RESUBSCRIBE = Backoff(first=0.2, cap=15.0)
"""Waits after the signal stream broke; the cap is nog's fixed wait."""

RUNS = metrics.counter(
    "leasehold_observe_runs_total", "Runs of activities", ["activity", "outcome"]
)
KNOWN = metrics.gauge("leasehold_observe_tasks", "Known activities", ["activity"])
RETRIES = metrics.counter("leasehold_observe_retries_total", "Runs tried again", ["activity"])
WAKE_TO_RUN = metrics.histogram(
    "leasehold_observe_wake_to_run_seconds", "From a wake-up to the start of the run", ["limit"]
)
RUN_SECONDS = metrics.histogram(
    "leasehold_observe_run_seconds", "Time of a run, waits included", ["activity"]
)
MISSED = metrics.counter(
    "leasehold_observe_missed_signals_total", "Wake-ups that only the resync found"
)


class Engine(Service):
    """Register activities, then start it.

    ``rng`` is for reproducible runs; ``owns`` says which entities this instance answers for, where
    several share a log (default: all).
    """

    def __init__(
        self,
        log: Log,
        clock: Clock | None = None,
        settings: ObserveSettings | None = None,
        *,
        rng: random.Random | None = None,
        owns: Callable[[Entity], bool] | None = None,
    ) -> None:
        super().__init__("observe", clock=clock)
        self.log = log
        self.settings = settings or ObserveSettings()
        self.stop_deadline = self.settings.drain_s + 5.0
        self.owns = owns
        self.backoff = Backoff(
            first=self.settings.retry_first_s,
            cap=self.settings.retry_cap_s,
            rng=rng or random.Random(),
        )
        self.lanes = {
            "general": Lane("general", self.settings.general, self._start_run),
            "repo": Lane("repo", self.settings.repo, self._start_run),
        }
        self.registrations: dict[str, Registration] = {}
        self._by_kind: dict[str, list[Registration]] = {}
        self._resident: OrderedDict[Task, Activity] = OrderedDict()
        self._running: set[asyncio.Task[None]] = set()
        self._timers_changed = asyncio.Event()
        self._fired: dict[tuple[Entity, str], float] = {}
        self._seen = 0

    # -- registering ---------------------------------------------------------------------------

    def register(
        self,
        factory: type[Activity] | ActivityFactory,
        *,
        kind: type[Activity] | None = None,
        every: bool = True,
    ) -> None:
        """Run ``factory(context)`` for every entity of the activity's kind.

        ``factory`` is an activity class, or a callable together with the class in ``kind``. With
        ``every=False`` only what :meth:`begin` is called for runs.
        """
        cls = kind or factory
        assert isinstance(cls, type)
        assert issubclass(cls, Activity)
        if cls.name in self.registrations:
            raise ValueError(f"activity {cls.name!r} is registered already")
        registration = Registration(
            cls.name,
            cls.entity_kind,
            cls.limit if cls.limit in self.lanes else "general",
            factory,
            issubclass(cls, Reconciler),
            every,
            cls.eager,
        )
        self.registrations[cls.name] = registration
        self._by_kind.setdefault(cls.entity_kind, []).append(registration)

    def begin(self, name: str, id: str, *, key: str = "", option: Any = None) -> None:
        """Start the activity ``name`` on the entity ``id``; one that exists is left alone.

        ``key`` tells several activities of one name on one entity apart. Whoever begins
        activities begins them again after a restart: only those without a key are kept.
        """
        registration = self.registrations[name]
        wanted = task_key(id, key)
        if wanted in registration.active or wanted in registration.asleep:
            return
        task = self._activate(registration, wanted)
        task.option = option
        self._wake(task)

    def finished(self, name: str, id: str, *, key: str = "") -> asyncio.Event:
        """Set when that activity has finished; at once when there is none."""
        registration = self.registrations[name]
        wanted = task_key(id, key)
        if wanted not in registration.active and wanted not in registration.asleep:
            over = asyncio.Event()
            over.set()
            return over
        task = self._activate(registration, wanted)
        if task.done is None:
            task.done = asyncio.Event()
        return task.done

    # -- lifecycle -----------------------------------------------------------------------------

    async def start(self) -> None:
        stream = self.log.signals()
        first = await anext(stream)
        assert isinstance(first, Subscribed)
        self._seen = first.seq
        for registration in self.registrations.values():
            await self._load(registration)
        self.spawn(self._follow(stream), name="signals")
        self.spawn(self._resync(), name="resync")
        self.spawn(self._fire_timers(), name="timers")

    async def _load(self, registration: Registration) -> None:
        """Put every known activity to sleep where it was, and wake those with news."""
        saved = await self.log.checkpoints(registration.name)
        for entity, checkpoint in saved.items():
            state = checkpoint.state or b""
            if state[:1] == DONE_MARK:
                registration.done[entity.id] = checkpoint.tail
            else:
                registration.asleep[entity.id] = Sleeper(checkpoint.tail, state[1:])
        for entity in await self.log.checkpoints(PAUSES + registration.name):
            self._pause(self._activate(registration, entity.id))
        if registration.every or registration.asleep:
            asleep = registration.asleep
            for entity, head in await self.log.entities(registration.entity_kind):
                sleeper = asleep.get(entity.id)
                # Most of them, after most restarts: nothing is new.
                if sleeper is not None and sleeper.tail == head.id:
                    continue
                if registration.every or sleeper is not None:
                    self._news(registration, entity, head.id)
        if registration.eager:
            for id in list(registration.asleep):
                self._wake(self._activate(registration, id))
        for entity, checkpoint in (await self.log.checkpoints(ERRORS + registration.name)).items():
            task = self._activate(registration, entity.id)
            task.error = msgspec.json.decode(checkpoint.state or b"", type=StoredError)
            self._wake(task)
        self._count(registration)

    async def stop(self) -> None:
        for lane in self.lanes.values():
            lane.closed = True
        for registration in self.registrations.values():
            for task in registration.active.values():
                if task.retry is not None:
                    task.retry.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=self.settings.drain_s)

    # -- news ----------------------------------------------------------------------------------

    async def _follow(self, stream: AsyncIterator[Signal | Subscribed]) -> None:
        failures = 0
        while True:
            try:
                async for signal in stream:
                    failures = 0
                    if isinstance(signal, Signal):
                        self._signal(signal)
            except LeaseholdError as error:
                log.warning("observe.signals_lost", error=str(error))
            failures += 1
            await self.clock.sleep(RESUBSCRIBE.delay(failures))
            stream = self.log.signals(self._seen)

    def _signal(self, signal: Signal) -> None:
        self._timers_changed.set()
        if signal.head:
            for registration in self._by_kind.get(signal.entity.kind, ()):
                self._news(registration, signal.entity, signal.head)

    async def _resync(self) -> None:
        """Wake what a lost signal should have woken; costs what changed since the last look."""
        while True:
            await self.clock.sleep(self.settings.resync_s)
            try:
                newest = await self.log.last_seq()
                if newest == self._seen:
                    continue
                for signal in await self.log.changed(self._seen):
                    for registration in self._by_kind.get(signal.entity.kind, ()):
                        if self._news(registration, signal.entity, signal.head):
                            MISSED.inc()
                self._seen = newest
                self._timers_changed.set()
            except LeaseholdError as error:
                log.warning("observe.resync_failed", error=str(error))

    async def rescan(self) -> None:
        """Look at every entity again: some may be ours that were another instance's before."""
        for registration in self.registrations.values():
            saved = await self.log.checkpoints(registration.name)
            for entity, head in await self.log.entities(registration.entity_kind):
                # What we kept of it while it was not ours is old.
                known = saved.get(entity)
                sleeper = registration.asleep.get(entity.id)
                if sleeper is not None and known is not None and known.tail != sleeper.tail:
                    state = known.state or b""
                    if state[:1] == DONE_MARK:
                        del registration.asleep[entity.id]
                        registration.done[entity.id] = known.tail
                    else:
                        registration.asleep[entity.id] = Sleeper(known.tail, state[1:])
                if registration.every or entity.id in registration.asleep:
                    self._news(registration, entity, head.id)
        self._fired.clear()
        self._timers_changed.set()

    def _news(self, registration: Registration, entity: Entity, head: str) -> bool:
        """``entity`` is at ``head``; whether that woke anything that slept."""
        if self.owns is not None and not self.owns(entity):
            return False
        woken = False
        for key in (entity.id, *registration.keys.get(entity.id, ())):
            task = registration.active.get(key)
            if task is not None:
                if task.tail != head and task.failed_head != head:
                    self._wake(task)
                continue
            sleeper = registration.asleep.get(key)
            if sleeper is not None:
                if sleeper.tail != head:
                    self._wake(self._activate(registration, key))
                    woken = True
            elif (
                key == entity.id and registration.every and (registration.done.get(key, "") != head)
            ):
                self._wake(self._activate(registration, key))
                woken = True
        return woken

    def _activate(self, registration: Registration, key: str) -> Task:
        """A task out of its sleep, or a new one."""
        task = registration.active.get(key)
        if task is None:
            sleeper = registration.asleep.pop(key, None)
            task = Task(registration, key, state=SLEEPING)
            if sleeper is not None:
                task.tail, task.saved = sleeper.tail, sleeper.saved
                task.saved_tail = sleeper.tail
            registration.done.pop(key, None)
            registration.active[key] = task
            if "\0" in key:
                registration.keys.setdefault(task.entity.id, set()).add(key)
            self._count(registration)
        return task

    def _sleep(self, task: Task) -> None:
        """Keep only what is needed to wake it."""
        registration = task.registration
        task.state = SLEEPING
        if task.done is not None or task.option is not None or "\0" in task.key:
            return  # somebody waits for it, or only its beginner can rebuild it
        if task.activity is not None and task.saved is None:
            # Without a saved state waking it means reading everything: keep some as they are.
            self._resident[task] = task.activity
            self._resident.move_to_end(task)
            if len(self._resident) <= self.settings.resident:
                return
            task, _ = self._resident.popitem(last=False)
            task.activity = None
            registration = task.registration
        del registration.active[task.key]
        registration.asleep[task.key] = Sleeper(task.tail, task.saved)

    def _forget(self, task: Task, *, done: bool) -> None:
        registration = task.registration
        registration.active.pop(task.key, None)
        keys = registration.keys.get(task.entity.id)
        if keys is not None:
            keys.discard(task.key)
            if not keys:
                del registration.keys[task.entity.id]
        if done and "\0" not in task.key:
            registration.done[task.key] = task.tail
        if task.done is not None:
            task.done.set()
        self._count(registration)

    def _count(self, registration: Registration) -> None:
        KNOWN.labels(registration.name).set(len(registration.asleep) + len(registration.active))

    def _wake(self, task: Task) -> None:
        if task.state == RUNNING or task.paused:
            task.dirty = True
        elif task.state != READY:
            if task.retry is not None:
                task.retry.cancel()
                task.retry = None
            task.state = READY
            task.woken_at = self.clock.monotonic()
            self._resident.pop(task, None)
            self.lanes[task.registration.limit].put(task)

    # -- running -------------------------------------------------------------------------------

    def _start_run(self, task: Task, lane: Lane) -> None:
        if task.state != READY or self.stopping:
            lane.free += 1
            return
        task.state = RUNNING
        run = self.spawn(self._run_task(task, lane), name=f"run {task.name} {task.entity}")
        self._running.add(run)
        run.add_done_callback(self._running.discard)

    async def _run_task(self, task: Task, lane: Lane) -> None:
        slot = LaneSlot(lane)
        name = task.registration.name
        outcome = Outcome.SLEEP
        began = self.clock.monotonic()
        WAKE_TO_RUN.labels(lane.name).observe(max(0.0, began - task.woken_at))
        failed: Exception | None = None
        try:
            task.dirty = False
            outcome = await self._run_activity(task, slot)
            if task.error is not None:
                await self._clear_error(task)
            task.failures, task.failed_head = 0, None
            RUNS.labels(name, outcome.value).inc()
        except Exception as error:
            failed = error
            RUNS.labels(name, "failed").inc()
        finally:
            slot.release()
            RUN_SECONDS.labels(name).observe(self.clock.monotonic() - began)
        if self.stopping:
            return
        if failed is not None:
            await self._failed(task, failed)
            if task.paused:
                self._pause(task)
        elif outcome is Outcome.DONE:
            self._forget(task, done=True)
            head = await self.log.head(task.entity)
            if head is not None and head.id != task.tail and task.registration.every:
                self._news(task.registration, task.entity, head.id)
        elif task.paused:
            task.state = PAUSED
        elif task.dirty or task.timers:
            task.state = SLEEPING
            self._wake(task)
        else:
            self._sleep(task)

    async def _run_activity(self, task: Task, slot: LaneSlot) -> Outcome:
        registration, entity = task.registration, task.entity
        activity = task.activity
        if activity is None:
            context = Context(entity, task.name, self.log, self.clock, task.option)
            activity = registration.factory(context)
            if task.saved is not None:
                activity.restore(task.saved)
            else:
                task.tail = None
            fresh = True
        else:
            fresh = False
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
            await self.log.append(timer.entity, ANY, [], timers=[cancel])
        self._fired.pop((timer.entity, timer.name), None)
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
        await self.log.append(task.entity, ANY, [], checkpoint=checkpoint)

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
        if self.stopping:
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
        if task.state == RETRYING and not self.stopping:
            self._wake(task)

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
            await self._mark(ERRORS, task, state)

    async def _clear_error(self, task: Task) -> None:
        task.error = None
        if "\0" not in task.key:
            await self._mark(ERRORS, task, None)

    async def _mark(self, prefix: str, task: Task, state: bytes | None) -> None:
        mark = Checkpoint(prefix + task.registration.name, task.tail, state)
        await self.log.append(task.entity, ANY, [], checkpoint=mark)

    # -- timers --------------------------------------------------------------------------------

    async def _fire_timers(self) -> None:
        while True:
            self._timers_changed.clear()
            try:
                now = self.clock.now()
                due = await self.log.due_timers(now, limit=TIMER_PAGE)
                pending = {}
                for timer in due:
                    key = (timer.entity, timer.name)
                    pending[key] = timer.due_at
                    if self._fired.get(key) != timer.due_at:
                        self._timer_due(timer)
                self._fired = pending
                upcoming = await self.log.next_timer(after=now)
            except LeaseholdError as error:
                log.warning("observe.timers_unread", error=str(error))
                await self.clock.sleep(1.0)
                continue
            # Timers that fired stay in the table until their activity has handled them.
            wait = None if upcoming is None else max(0.0, upcoming - self.clock.now())
            if len(due) == TIMER_PAGE:
                wait = TIMER_PAUSE
            try:
                async with self.clock.timeout(wait):
                    await self._timers_changed.wait()
                await self.clock.sleep(TIMER_PAUSE)
            except TimeoutError:
                pass

    def _timer_due(self, timer: DueTimer) -> None:
        if self.owns is not None and not self.owns(timer.entity):
            return
        name, _, extra = timer.name.partition("/")[0].partition("#")
        registration = self.registrations.get(name)
        if registration is None or registration.entity_kind != timer.entity.kind:
            return
        key = task_key(timer.entity.id, extra)
        if key in registration.done or (
            not registration.every
            and key not in registration.active
            and key not in registration.asleep
        ):
            cancel = Timer(timer.name, None, was=timer.due_at)
            self.spawn(self.log.append(timer.entity, ANY, [], timers=[cancel]), name="cancel")
            return
        task = self._activate(registration, key)
        task.timers.append(timer)
        self._wake(task)

    # -- operators -----------------------------------------------------------------------------

    def tasks(self, name: str = "", state: str = "") -> list[dict[str, Any]]:
        """What the engine knows: one row an activity that is not simply asleep."""
        return [
            self.inspect(registration.name, key)
            for registration in self.registrations.values()
            if not name or registration.name == name
            for key, task in registration.active.items()
            if not state or task.state == state
        ]

    def counts(self) -> list[dict[str, Any]]:
        """One row a registration: how many activities it has, by state."""
        rows = []
        for registration in self.registrations.values():
            by_state: dict[str, int] = {SLEEPING: len(registration.asleep)}
            for task in registration.active.values():
                by_state[task.state] = by_state.get(task.state, 0) + 1
            rows.append(
                {
                    "activity": registration.name,
                    "kind": registration.entity_kind,
                    "limit": registration.limit,
                    "finished": len(registration.done),
                    **by_state,
                }
            )
        return rows

    def inspect(self, name: str, key: str) -> dict[str, Any]:
        """Everything about one activity."""
        registration = self._registration(name)
        task = registration.active.get(key)
        row: dict[str, Any] = {
            "activity": name,
            "entity": f"{registration.entity_kind}:{key.partition(chr(0))[0]}",
            "key": key.partition("\0")[2],
        }
        if task is not None:
            row |= {
                "state": task.state,
                "tail": task.tail,
                "failures": task.failures,
                "error": msgspec.to_builtins(task.error),
                "timers": [timer.name for timer in task.timers],
            }
        elif key in registration.asleep:
            row |= {"state": SLEEPING, "tail": registration.asleep[key].tail}
        elif key in registration.done:
            row |= {"state": "finished", "tail": registration.done[key]}
        else:
            raise LeaseholdError(
                "activity_not_found", f"no activity {name} on {key!r}", kind=Kind.NOT_FOUND
            )
        return row

    def kick(self, name: str, key: str) -> None:
        """Run it now, whatever it waits for (unless paused)."""
        registration = self._registration(name)
        self.inspect(name, key)
        self._wake(self._activate(registration, key))

    async def pause(self, name: str, key: str) -> None:
        """Let what runs end, then start nothing until :meth:`resume`; survives a restart."""
        registration = self._registration(name)
        self.inspect(name, key)
        task = self._activate(registration, key)
        await self._mark(PAUSES, task, b"paused")
        self._pause(task)

    def _pause(self, task: Task) -> None:
        task.paused = True
        if task.retry is not None:
            task.retry.cancel()
            task.retry = None
        if task.state == READY:
            self.lanes[task.registration.limit].queue.remove(task)
        if task.state != RUNNING:
            task.state = PAUSED

    async def resume(self, name: str, key: str) -> None:
        task = self._registration(name).active.get(key)
        if task is not None and task.paused:
            await self._mark(PAUSES, task, None)
            task.paused = False
            if task.state == PAUSED:
                task.state = SLEEPING
                self._wake(task)

    async def clear(self, name: str, key: str) -> None:
        """Forget the stored error and try again."""
        task = self._registration(name).active.get(key)
        if task is not None:
            task.failures, task.failed_head = 0, None
            await self._clear_error(task)
            self._wake(task)

    def _registration(self, name: str) -> Registration:
        try:
            return self.registrations[name]
        except KeyError:
            known = ", ".join(sorted(self.registrations))
            raise LeaseholdError(
                "activity_not_found",
                f"no activity {name!r}",
                kind=Kind.NOT_FOUND,
                expected=known,
                got=name,
            ) from None
