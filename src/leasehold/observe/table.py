"""The table of activities: which there are, what each is doing, and what news change about that.

An activity is sleeping, ready, running, waiting to try again, parked or paused. News that arrive
during a run make it ready again afterwards, so an entity is never run twice at once and no wake-up
is lost. Most activities sleep, and of a sleeper only its tail and its saved state are kept.

Nothing here waits or touches the log: every change is one step of the loop.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.events.event import Entity
from leasehold.observe.activity import Activity, ActivityFactory, Reconciler
from leasehold.observe.lanes import Lane
from leasehold.observe.settings import ObserveSettings
from leasehold.observe.tasks import (
    PAUSED,
    READY,
    RUNNING,
    SLEEPING,
    Registration,
    Sleeper,
    Task,
)

KNOWN = metrics.gauge("leasehold_observe_tasks", "Known activities", ["activity"])

_known = functools.cache(KNOWN.labels)


class Table:
    """``start`` runs a task that got a slot; ``owns`` says which entities are this instance's."""

    def __init__(
        self,
        clock: Clock,
        settings: ObserveSettings,
        start: Callable[[Task, Lane], None],
        owns: Callable[[Entity], bool] | None,
    ) -> None:
        self.clock = clock
        self.resident_limit = settings.resident
        self.owns = owns
        self.lanes = {
            "general": Lane("general", settings.general, start),
            "repo": Lane("repo", settings.repo, start),
        }
        self.registrations: dict[str, Registration] = {}
        self._by_kind: dict[str, list[Registration]] = {}
        self._resident: OrderedDict[Task, Activity] = OrderedDict()

    def register(
        self, factory: type[Activity] | ActivityFactory, cls: type[Activity], *, every: bool
    ) -> None:
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

    def registration(self, name: str) -> Registration:
        """That of an activity, else ``activity_not_found``."""
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

    def ours(self, entity: Entity) -> bool:
        return self.owns is None or self.owns(entity)

    # -- news ----------------------------------------------------------------------------------

    def signal(self, entity: Entity, head: str) -> bool:
        """``entity`` is at ``head``; whether that woke anything that slept."""
        woken = False
        for registration in self._by_kind.get(entity.kind, ()):
            woken |= self.news(registration, entity, head)
        return woken

    def news(self, registration: Registration, entity: Entity, head: str) -> bool:
        """The same for one kind of activity."""
        if not self.ours(entity):
            return False
        woken = False
        for key in (entity.id, *registration.keys.get(entity.id, ())):
            task = registration.active.get(key)
            if task is not None:
                if task.tail != head and task.failed_head != head:
                    self.wake(task)
                continue
            sleeper = registration.asleep.get(key)
            if sleeper is not None:
                if sleeper.tail != head:
                    self.wake(self.activate(registration, key))
                    woken = True
            elif key == entity.id and registration.every and registration.done.get(key, "") != head:
                self.wake(self.activate(registration, key))
                woken = True
        return woken

    # -- states --------------------------------------------------------------------------------

    def activate(self, registration: Registration, key: str) -> Task:
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
            self.count(registration)
        return task

    def wake(self, task: Task) -> None:
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

    def sleep(self, task: Task) -> None:
        """Keep only what is needed to wake it."""
        registration = task.registration
        task.state = SLEEPING
        if task.done is not None or task.option is not None or "\0" in task.key:
            return  # somebody waits for it, or only its beginner can rebuild it
        if task.activity is not None and task.saved is None:
            # Without a saved state waking it means reading everything: keep some as they are.
            self._resident[task] = task.activity
            self._resident.move_to_end(task)
            if len(self._resident) <= self.resident_limit:
                return
            task, _ = self._resident.popitem(last=False)
            task.activity = None
            registration = task.registration
        del registration.active[task.key]
        registration.asleep[task.key] = Sleeper(task.tail, task.saved)

    def pause(self, task: Task) -> None:
        task.paused = True
        if task.retry is not None:
            task.retry.cancel()
            task.retry = None
        if task.state == READY:
            self.lanes[task.registration.limit].queue.remove(task)
        if task.state != RUNNING:
            task.state = PAUSED

    def forget(self, task: Task) -> None:
        """It is finished with its entity."""
        registration = task.registration
        registration.active.pop(task.key, None)
        keys = registration.keys.get(task.entity.id)
        if keys is not None:
            keys.discard(task.key)
            if not keys:
                del registration.keys[task.entity.id]
        if "\0" not in task.key:
            registration.done[task.key] = task.tail
        if task.done is not None:
            task.done.set()
        self.count(registration)

    def count(self, registration: Registration) -> None:
        _known(registration.name).set(len(registration.asleep) + len(registration.active))
