"""What an activity is.

An activity belongs to one entity. Its first run folds the whole history without side effects
(:meth:`Activity.fold`) and then acts once on the final state (:meth:`Activity.settle`); after that
it handles what is new. It never holds state that the log does not: after a crash, an error or a
long sleep it is folded again, or restored from its checkpoint, and settles again. So every effect
looks before it acts.
"""

from __future__ import annotations

import contextlib
import enum
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, ClassVar

import msgspec

from leasehold.core import ids
from leasehold.core.clock import Clock
from leasehold.events.event import Entity, Event, NewEvent, Timer
from leasehold.events.log import ANY, Log


class Outcome(enum.Enum):
    """What an activity says at the end of a run."""

    SLEEP = "sleep"
    """Wake me when there is news or a timer is due."""
    DONE = "done"
    """Finished with this entity: forget me."""


class Slot(ABC):
    """The right to run, of which a kind has a limited number."""

    @abstractmethod
    def release(self) -> None: ...

    @abstractmethod
    async def acquire(self) -> None: ...


class Context:
    """What an activity may use: its entity, the log, the clock, and its own slot.

    ``option`` is what it was begun with, ``failures`` how many runs in a row have failed.
    """

    def __init__(
        self, entity: Entity, activity: str, log: Log, clock: Clock, option: Any = None
    ) -> None:
        self.entity = entity
        self.activity = activity
        self.log = log
        self.clock = clock
        self.option = option
        self.failures = 0
        self.slot: Slot | None = None
        self.armed: set[str] = set()

    async def emit(
        self,
        payload: msgspec.Struct,
        *,
        key: str = "",
        entity: Entity | None = None,
        timers: Sequence[Timer] = (),
    ) -> Event:
        """Append one fact.

        With ``key`` the event's id depends only on (activity, entity, key), so saying it again
        after a crash changes nothing. ``entity`` defaults to the activity's own.
        """
        id = ids.derived(0.0, self.activity, str(self.entity), key) if key else ""
        event = NewEvent.of(payload, id=id, clock=self.clock)
        for timer in timers:
            self.armed.add(timer.name)
        return (await self.log.append(entity or self.entity, ANY, [event], timers=timers))[0]

    async def arm(self, name: str, due_at: float | None) -> None:
        """Wake this activity through :meth:`Activity.fired` at ``due_at`` (None: cancel)."""
        self.armed.add(self.timer(name))
        await self.log.append(self.entity, ANY, [], timers=[Timer(self.timer(name), due_at)])

    def timer(self, name: str) -> str:
        """The full name of this activity's timer ``name``: timers of an entity share a table."""
        return timer_name(self.activity, name)

    @contextlib.asynccontextmanager
    async def outside(self) -> AsyncIterator[None]:
        """Give the slot back while waiting for something slow outside (a pull, a health check)."""
        slot = self.slot
        if slot is None:
            yield
            return
        slot.release()
        try:
            yield
        finally:
            await slot.acquire()


class Activity(ABC):
    """Base class. ``name`` keys checkpoints and timers and must never change."""

    name: ClassVar[str]
    entity_kind: ClassVar[str]
    limit: ClassVar[str] = "general"
    """Which limit of the engine its runs count against."""
    eager: ClassVar[bool] = False
    """Whether it runs once after every start, even when nothing is new."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @property
    def entity(self) -> Entity:
        return self.context.entity

    @abstractmethod
    def fold(self, event: Event) -> None:
        """Take one event into the state. No side effects, no waiting."""

    async def settle(self) -> Outcome:
        """Act once on the folded state."""
        return Outcome.SLEEP

    async def react(self, event: Event) -> Outcome:
        """Handle one later event. The default folds it and settles."""
        self.fold(event)
        return await self.settle()

    async def fired(self, timer: str) -> Outcome:
        """A timer of this activity is due. The default settles."""
        return await self.settle()

    def save(self) -> bytes | None:
        """The folded state for a checkpoint; None: fold the whole history when rebuilt."""
        return None

    def restore(self, state: bytes) -> None:
        """The inverse of :meth:`save`."""
        raise NotImplementedError


class Reconciler(Activity):
    """An activity that only cares for the final state: takes all news in, then settles once."""

    batch: ClassVar[bool] = True


ActivityFactory = Callable[[Context], Activity]


def timer_name(activity: str, name: str) -> str:
    return f"{activity}/{name}"
