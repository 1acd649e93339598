"""What an event is.

Each entity has one linear history: an event names its ``parent``, the event before it. ``seq`` is
the commit order of the whole log and has no gaps for readers. Ids say nothing about order.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import msgspec

from leasehold.core import ids
from leasehold.core.clock import Clock
from leasehold.model import events as payloads


class Entity(NamedTuple):
    """Whose history it is: ``Entity("lease", "akash1…/7/1/1/akash1…")``."""

    kind: str
    id: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.id}"

    @classmethod
    def parse(cls, text: str) -> Entity:
        kind, colon, name = text.partition(":")
        if not colon or not kind or not name:
            raise ValueError(f"not an entity: {text!r}, expected kind:id")
        return cls(kind, name)


class NewEvent(msgspec.Struct, frozen=True):
    """An event to append. ``data`` is JSON; the id makes the append idempotent."""

    id: str
    type: str
    data: bytes

    @classmethod
    def of(cls, payload: msgspec.Struct, *, id: str = "", clock: Clock | None = None) -> NewEvent:
        """Wrap a registered payload; give ``id`` where the same fact may be appended twice."""
        if not id:
            id = ids.new(clock.now() if clock else time.time())
        kind, data = payloads.encode(payload)
        return cls(id, kind, data)


class Event(msgspec.Struct, frozen=True):
    """A committed event. ``parent`` is None for the first of its entity; ``at`` is seconds UTC."""

    seq: int
    entity: Entity
    id: str
    parent: str | None
    type: str
    data: bytes
    at: float

    @property
    def payload(self) -> Any:
        """The decoded payload; raises :class:`leasehold.model.events.Undecodable`."""
        return payloads.decode(self.type, self.data)


class Head(NamedTuple):
    """The newest event of an entity."""

    id: str
    seq: int


class Signal(NamedTuple):
    """A hint that ``entity`` has news: its newest event is ``head`` at ``seq``.

    Setting or cancelling a timer is news too; then nothing but the timers changed, and ``head`` is
    empty when the entity has no events.
    """

    entity: Entity
    head: str
    seq: int


class Subscribed(NamedTuple):
    """First item of a signal stream: every event after ``seq`` will be signalled."""

    seq: int


class WillBlock(NamedTuple):
    """A watching reader got everything there is and now waits."""

    tail: str | None


class Timer(NamedTuple):
    """Wake ``entity``'s activity at ``due_at`` (seconds UTC). None cancels the timer of that name.

    With ``was``, nothing happens unless the stored due time is exactly that: whoever handled a
    timer that fired cancels that one, and not the one somebody set in the meantime.
    """

    name: str
    due_at: float | None
    was: float | None = None


class DueTimer(NamedTuple):
    entity: Entity
    name: str
    due_at: float


class Checkpoint(NamedTuple):
    """How far an activity has read an entity, and what it had folded by then.

    ``state=None`` deletes the checkpoint: that activity is finished with the entity.
    """

    activity: str
    tail: str | None
    state: bytes | None
    seq: int = 0
