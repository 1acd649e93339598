"""Who answers for an entity where several instances share a log.

Entities are spread over 64 partitions by hash; an instance owns a partition by a lease row with an
epoch (see ``leases``). It renews every third of the lease's time. Whoever was paused too long knows
by its own clock that it owns nothing, and the log refuses its writes by the stale epoch if it does
not. Entities bound to a host are *placed*: they belong to the instance on that host, never hashed.

An *exclusive* instance is alone with its log: it claims everything or does not start, and ends
when it finds that another one took over. That is for a provider all of whose workloads are bound
to its host, with a spare one waiting elsewhere.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.service import Service
from leasehold.events.event import Entity
from leasehold.events.leases import partition_of
from leasehold.events.postgres import PostgresLog

IN_USE = "log_in_use"

log = get_logger(__name__)


class Partitions(Service):
    """The partitions of this instance. ``placed(entity)`` is True for entities of this host, False
    for those of another, None for those that are hashed. ``gained`` is called when some are new.

    With ``exclusive`` it waits up to one lease for an earlier instance to end, then refuses to
    start with ``log_in_use``.
    """

    def __init__(
        self,
        log: PostgresLog,
        clock: Clock | None = None,
        *,
        ttl: float | None = None,
        placed: Callable[[Entity], bool | None] = lambda _: None,
        exclusive: bool = False,
    ) -> None:
        super().__init__("partitions", clock=clock)
        self.log = log
        self.ttl = ttl or log.settings.lease_ttl_s
        self.placed = placed
        self.exclusive = exclusive
        self.gained: Callable[[], Awaitable[None]] | None = None
        self.held: dict[int, int] = {}
        self._until = 0.0
        self.start_deadline += self.ttl

    async def start(self) -> None:
        patience = self.clock.monotonic() + self.ttl
        while True:
            try:
                await self._claim()
                break
            except LeaseholdError as error:
                left = patience - self.clock.monotonic()
                if error.code != IN_USE or left <= 0:
                    raise
                log.warning("partitions.waiting", error=str(error))
                await self.clock.sleep(min(left, error.retry_after or left))
        self.spawn(self._renew(), name="renew")

    async def stop(self) -> None:
        self.held = {}
        await self.log.leave(self.log.instance)

    async def _claim(self) -> None:
        asked = self.clock.monotonic()
        held = await self.log.claim(
            self.log.instance, self.ttl, self.held, all_of_them=self.exclusive
        )
        # What happened while we had let the lease lapse, nobody told us to look at.
        lapsed = self.clock.monotonic() >= self._until
        new = held.keys() if lapsed else held.keys() - self.held.keys()
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
                if error.code == IN_USE:
                    raise  # nothing we do counts any more
                log.warning("partitions.not_renewed", error=str(error))

    def owns(self, entity: Entity) -> bool:
        placed = self.placed(entity)
        if placed is not None:
            return placed
        return self.clock.monotonic() < self._until and partition_of(entity) in self.held

    def epoch(self, entity: Entity) -> int | None:
        """What to append with as ``entity``'s owner; None where no lease guards the entity. An
        epoch we do not hold is 0, which the log always refuses."""
        if self.placed(entity) is not None:
            return None
        return self.held.get(partition_of(entity), 0)
