"""The log of an owner: what it appends says so, and is refused once it owns no more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

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
from leasehold.events.log import Log, Standing


class FencedLog:
    """A log whose appends carry ``epoch(entity)``: the log of an owner.

    What anybody may tell at any time (commands, facts with ids of their own) is appended to the
    log itself instead.
    """

    def __init__(self, log: Log, epoch: Callable[[Entity], int | None]) -> None:
        self.log = log
        self.epoch = epoch

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
        return await self.log.append(
            entity,
            parent,
            events,
            timers=timers,
            checkpoint=checkpoint,
            epoch=self.epoch(entity) if epoch is None else epoch,
        )

    def read(
        self, entity: Entity, after: str | None = None, *, watch: bool = False
    ) -> AsyncIterator[Event | WillBlock]:
        return self.log.read(entity, after, watch=watch)

    def read_all(self, after_seq: int = 0, *, limit: int = 1000) -> AsyncIterator[Event]:
        return self.log.read_all(after_seq, limit=limit)

    async def head(self, entity: Entity) -> Head | None:
        return await self.log.head(entity)

    async def last_seq(self) -> int:
        return await self.log.last_seq()

    async def entities(self, kind: str, prefix: str = "") -> list[tuple[Entity, Head]]:
        return await self.log.entities(kind, prefix)

    def signals(self, after_seq: int | None = None) -> AsyncIterator[Signal | Subscribed]:
        return self.log.signals(after_seq)

    async def changed(self, after_seq: int) -> list[Signal]:
        return await self.log.changed(after_seq)

    async def due_timers(self, until: float, *, limit: int = 1000) -> list[DueTimer]:
        return await self.log.due_timers(until, limit=limit)

    async def next_timer(self, after: float | None = None) -> float | None:
        return await self.log.next_timer(after)

    async def checkpoints(self, activity: str) -> dict[Entity, Checkpoint]:
        return await self.log.checkpoints(activity)

    def standing(self, activity: str, kind: str) -> AsyncIterator[Sequence[Standing]]:
        return self.log.standing(activity, kind)

    async def trim(self, entity: Entity, keep_from: str) -> int:
        return await self.log.trim(entity, keep_from)

    async def close(self) -> None:
        await self.log.close()
