"""What an append becomes: the decisions about a batch, the same for every backend.

The appends of a batch are decided one after the other, upon the heads as the ones before them left
them. A refused one costs its caller an error and nobody else anything; what was accepted is
gathered here, to be written by a few set-wise statements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from leasehold.core.errors import LeaseholdError
from leasehold.events.event import Checkpoint, Entity, Event, NewEvent, Timer
from leasehold.events.log import ANY, VersionConflict


@dataclass(slots=True, eq=False)
class Request:
    """One append and, once decided, what became of it."""

    entity: Entity
    parent: str | None
    events: Sequence[NewEvent]
    timers: Sequence[Timer]
    checkpoint: Checkpoint | None
    future: Any = None
    epoch: int | None = None
    result: list[Event] = field(default_factory=list)
    fresh: list[Event] = field(default_factory=list)
    head: str = ""
    head_seq: int = 0
    error: LeaseholdError | None = None

    def refuse(self, error: LeaseholdError | None) -> None:
        self.error, self.result, self.fresh = error, [], []


@dataclass(slots=True, eq=False)
class HeadState:
    """The newest event of an entity; ``stored`` is False until the entity has a row."""

    eid: int
    id: str | None
    seq: int
    stored: bool


@dataclass(slots=True)
class Batch:
    """What is to be written."""

    last_seq: int
    fresh: list[Event] = field(default_factory=list)
    changed: dict[Entity, HeadState] = field(default_factory=dict)
    timers: list[tuple[HeadState, Timer]] = field(default_factory=list)
    checkpoints: list[tuple[HeadState, Checkpoint]] = field(default_factory=list)


def decide(
    requests: Sequence[Request],
    at: float,
    heads: Mapping[Entity, HeadState],
    known: dict[tuple[Entity, str], Event],
    last_seq: int,
    refused: Callable[[Request], LeaseholdError | None] = lambda _: None,
) -> Batch:
    """Fill in ``result`` or ``error`` of every request; changes ``heads`` and ``known``.

    ``known`` are those of the requests' events that the log has already.
    """
    batch = Batch(last_seq)
    for request in requests:
        entity = request.entity
        head = heads[entity]
        request.error = refused(request)
        if request.error is not None:
            continue
        found = [known.get((entity, new.id)) for new in request.events]
        if request.parent != ANY and request.parent != head.id:
            if request.events and None not in found:
                request.result = [event for event in found if event is not None]
            else:
                request.error = VersionConflict(entity, request.parent, head.id)
            continue
        for new, old in zip(request.events, found, strict=True):
            if old is None:
                batch.last_seq += 1
                old = Event(batch.last_seq, entity, new.id, head.id, new.type, new.data, at)
                head.id, head.seq = new.id, batch.last_seq
                known[entity, new.id] = old
                request.fresh.append(old)
            request.result.append(old)
        batch.fresh += request.fresh
        if request.fresh or not head.stored:
            batch.changed[entity] = head
        request.head, request.head_seq = head.id or "", head.seq
        batch.timers += [(head, timer) for timer in request.timers]
        if request.checkpoint is not None:
            batch.checkpoints.append((head, request.checkpoint))
    return batch
