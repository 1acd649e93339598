"""Who answers for an entity where several instances share a log.

Entities are spread over 64 partitions by hash; an instance owns a partition by a lease row with an
epoch. It renews every third of the lease's time. Whoever was paused too long knows by its own
clock that it owns nothing, and the log refuses its writes by the stale epoch if it does not.
Entities bound to a host are *placed*: they belong to the instance on that host, never hashed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.service import Service
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
from leasehold.events.postgres import PostgresLog, partition_of

log = get_logger(__name__)


class Partitions(Service):
    """The partitions of this instance. ``placed(entity)`` is True for entities of this host, False
    for those of another, None for those that are hashed. ``gained`` is called when some are new.
    """

    def __init__(
        self,
        log: PostgresLog,
        clock: Clock | None = None,
        *,
        ttl: float | None = None,
        placed: Callable[[Entity], bool | None] = lambda _: None,
    ) -> None:
        super().__init__("partitions", clock=clock)
        self.log = log
        self.ttl = ttl or log.settings.lease_ttl_s
        self.placed = placed
        self.gained: Callable[[], Awaitable[None]] | None = None
        self.held: dict[int, int] = {}
        self._until = 0.0

    async def start(self) -> None:
        await self._claim()
        self.spawn(self._renew(), name="renew")

    async def stop(self) -> None:
        self.held = {}
        await self.log.leave(self.log.instance)

    async def _claim(self) -> None:
        asked = self.clock.monotonic()
        held = await self.log.claim(self.log.instance, self.ttl)
        new = held.keys() - self.held.keys()
        self.held, self._until = held, asked + self.ttl
        if new:
            log.info("partitions.gained", count=len(new), held=len(held))
            if self.gained is not None:
                await self.gained()

    async def _renew(self) -> None:
        while True:
            await self.clock.sleep(self.ttl / 3)
            try:
                await self._claim()
            except LeaseholdError as error:
                log.warning("partitions.not_renewed", error=str(error))

    def owns(self, entity: Entity) -> bool:
        placed = self.placed(entity)
        if placed is not None:
            return placed
        return self.clock.monotonic() < self._until and partition_of(entity) in self.held

    def epoch(self, entity: Entity) -> int | None:
        """What to append with; None where no lease guards the entity. An epoch we no longer hold
        is 0, which the log always refuses."""
        if self.placed(entity) is not None:
            return None
        return self.held.get(partition_of(entity), 0)


class FencedLog:
    """The log as an owner sees it: what it appends to its own entities carries its epoch.

    An append to an entity of somebody else (a fact it may tell at any time) carries none.
    """

    def __init__(self, log: PostgresLog, partitions: Partitions) -> None:
        self.log = log
        self.partitions = partitions
        self._mine: set[int] = set()

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
        partition = partition_of(entity)
        if epoch is None:
            self._mine |= self.partitions.held.keys()
            # Once ours, always guarded: a partition we lost must refuse what we still try.
            if partition in self._mine:
                epoch = self.partitions.epoch(entity)
        return await self.log.append(
            entity, parent, events, timers=timers, checkpoint=checkpoint, epoch=epoch
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

    async def trim(self, entity: Entity, keep_from: str) -> int:
        return await self.log.trim(entity, keep_from)

    async def close(self) -> None:
        await self.log.close()
