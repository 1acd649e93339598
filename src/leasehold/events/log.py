"""The interface of a log and what each call promises.

Acknowledged means durable. An append commits its events, timers and checkpoint together or not at
all; two appends to one entity from the same head cannot both succeed. Signals are hints: what
counts is what :meth:`Log.read` returns, and gaps in ``seq`` show a reader what it missed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final, Protocol

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.events.event import (
    Checkpoint,
    DueTimer,
    Entity,
    Event,
    Head,
    NewEvent,
    Signal,
    Subscribed,
    Timer,
    WillBlock,
)

MAX_EVENT_BYTES = 1 << 20
"""Largest payload of one event; larger content belongs into a store, named by its digest."""

MAX_APPEND_EVENTS = 10_000
"""Most events in one append."""

ANY: Final = "*"
"""As ``parent``: append whatever the head is. Only for facts that cannot conflict."""


STANDING_PAGE = 5_000
"""Entities in one page of :meth:`Log.standing`."""

Standing = tuple[str, str | None, str | None, bytes | None]
"""An entity's id and the id of its newest event, None when it has none; the tail and the state of a
checkpoint, state None when there is none. A plain tuple: there may be a million of them."""


class VersionConflict(LeaseholdError):
    """The entity moved on since the caller read it; ``head`` is where it is now."""

    def __init__(self, entity: Entity, expected: str | None, head: str | None) -> None:
        super().__init__(
            "version_conflict",
            f"{entity} changed meanwhile",
            kind=Kind.CONFLICT,
            expected=expected,
            got=head,
        )
        self.head = head


class StaleOwner(LeaseholdError):
    """The caller no longer owns the entity's partition and may not write to it."""

    def __init__(self, entity: Entity, epoch: int, current: int) -> None:
        super().__init__(
            "stale_owner",
            f"this instance no longer owns {entity}",
            kind=Kind.CONFLICT,
            expected=current,
            got=epoch,
        )


class Trimmed(LeaseholdError):
    """The events after the given tail are gone; start again from the snapshot."""

    def __init__(self, entity: Entity, tail: str) -> None:
        super().__init__("tail_trimmed", f"{entity} was trimmed past {tail}", kind=Kind.CONFLICT)


def refuse_oversized(entity: Entity, events: Sequence[NewEvent]) -> None:
    """What every backend refuses before it does any work."""
    for text in (*entity, *(event.id for event in events)):
        if "\0" in text or not text:
            raise LeaseholdError(
                "event_name_invalid",
                f"an entity and an event id are texts without NUL, not {text[:40]!r}",
                kind=Kind.INVALID,
                got=text[:40],
            )
    if len(events) > MAX_APPEND_EVENTS:
        raise LeaseholdError(
            "append_too_large",
            f"too many events in one append to {entity}; append them in parts",
            kind=Kind.TOO_LARGE,
            expected=f"at most {MAX_APPEND_EVENTS}",
            got=len(events),
        )
    for event in events:
        if len(event.data) > MAX_EVENT_BYTES:
            raise LeaseholdError(
                "event_too_large",
                f"event {event.type} of {entity} is too large; store the content, log its digest",
                kind=Kind.TOO_LARGE,
                expected=f"at most {MAX_EVENT_BYTES} bytes",
                got=len(event.data),
            )
    if len({event.id for event in events}) != len(events):
        raise LeaseholdError(
            "event_id_twice",
            f"two events of one append to {entity} have the same id",
            kind=Kind.INVALID,
        )


class Log(Protocol):
    """Append, read, be told. One instance per process; safe for concurrent tasks of one loop."""

    async def append(
        self,
        entity: Entity,
        parent: str | None,
        events: Sequence[NewEvent],
        *,
        timers: Sequence[Timer] = (),
        checkpoint: Checkpoint | None = None,
        epoch: int | None = None,
    ) -> list[Event]:
        """Commit all of it or none.

        ``parent`` is the head the caller decided upon: None for a new entity, :data:`ANY` for no
        check. Events whose ids the entity already has are not appended again but returned as they
        were committed; when all of them are known, a ``parent`` that is not the head is no
        conflict but an append done before, of which nothing is applied a second time. ``events``
        may be empty, to commit timers and a checkpoint alone.

        Raises :class:`VersionConflict`, :class:`StaleOwner`, or ``LeaseholdError`` with kind
        UNAVAILABLE when the store does not answer (then nothing is known to be committed: append
        again with the same ids).
        """
        ...

    def read(
        self, entity: Entity, after: str | None = None, *, watch: bool = False
    ) -> AsyncIterator[Event | WillBlock]:
        """Events after ``after``, oldest first; then the end, or with ``watch`` a
        :class:`WillBlock` each time there is nothing left, and what comes next.

        Raises :class:`Trimmed` when ``after`` is not (or no longer) in the history: read again
        from the beginning, which is the snapshot after a trim."""
        ...

    def read_all(self, after_seq: int = 0, *, limit: int = 1000) -> AsyncIterator[Event]:
        """Every event of the log in commit order up to the newest, in pages of ``limit``."""
        ...

    async def head(self, entity: Entity) -> Head | None:
        """The newest event of ``entity``, None when it has none."""
        ...

    async def last_seq(self) -> int:
        """The newest ``seq`` committed, 0 for an empty log."""
        ...

    async def entities(self, kind: str, prefix: str = "") -> list[tuple[Entity, Head]]:
        """All entities of ``kind`` whose id starts with ``prefix``, with their heads."""
        ...

    def signals(self, after_seq: int | None = None) -> AsyncIterator[Signal | Subscribed]:
        """First :class:`Subscribed`, then a signal per changed entity, coalesced.

        With ``after_seq`` every entity that changed after it is signalled first.
        """
        ...

    async def changed(self, after_seq: int) -> list[Signal]:
        """Every entity with events after ``after_seq``, in the order of their newest one: what
        :meth:`signals` would have said. For whoever cannot trust its signals to arrive."""
        ...

    async def due_timers(self, until: float, *, limit: int = 1000) -> list[DueTimer]:
        """Timers due at or before ``until``, earliest first. They stay until an append with
        ``Timer(name, None)`` or a new time replaces them: fired at least once."""
        ...

    async def next_timer(self, after: float | None = None) -> float | None:
        """When the earliest timer is due; with ``after``, the earliest that is due later."""
        ...

    async def checkpoints(self, activity: str) -> dict[Entity, Checkpoint]:
        """All checkpoints of ``activity``."""
        ...

    def standing(self, activity: str, kind: str) -> AsyncIterator[Sequence[Standing]]:
        """How far ``activity`` has read each entity of ``kind``, in pages: what a start needs to
        know. Entities without an event or a checkpoint are not told of."""
        ...

    async def trim(self, entity: Entity, keep_from: str) -> int:
        """Forget the events before ``keep_from`` (an event that tells the state, a snapshot);
        returns how many. Their ids are forgotten with them, so keep what may be appended again."""
        ...

    async def close(self) -> None:
        """Finish what was accepted, then refuse everything."""
        ...
