"""What this node knows of the fleet: for people who ask, never for a decision.

Who holds a digest is asked of the provider records when somebody wants to know it; what cools down
is this node's own memory of failures. A node without others says so, and a lookup that could not be
made is *unknown*, not "nobody".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError
from leasehold.model.digest import Digest

if TYPE_CHECKING:  # a node alone imports nothing of libp2p
    from leasehold.images.discovery import Discovery
    from leasehold.images.membership import View
    from leasehold.images.negative import NegativeCache
    from leasehold.images.ports import Store

LOOKUP_SECONDS = 5.0
AT_ONCE = 8
"""Lookups of one question under way at a time."""

SHOWN = 1000
"""Most members and cooldowns one answer holds."""


class Holds(msgspec.Struct, frozen=True):
    """Who has a digest. ``others`` are names of nodes; None when nobody could be asked: ``why``."""

    digest: str
    here: bool
    others: list[str] | None
    why: str = ""


class Cooling(msgspec.Struct, frozen=True):
    """A digest that failed and is left alone: ``failure`` auth, not_found, rate_limited or
    transient; ``remaining`` seconds, ``until`` UTC seconds, ``failures`` in a row."""

    digest: str
    failure: str
    remaining: float
    until: float
    failures: int


class Neighbour(msgspec.Struct, frozen=True):
    """A node of the fleet. ``transfer`` is ``host:port`` of its peer transfer."""

    node: str
    zone: str
    transfer: str
    here: bool


class Known(msgspec.Struct, frozen=True):
    """The fleet as this node sees it. Without one ``node`` is empty and ``health`` None;
    ``health`` is how far provider records are to be believed, 0 to 1."""

    node: str = ""
    health: float | None = None
    members: list[Neighbour] = []
    cooling: list[Cooling] = []


class Fleet:
    """``node`` is this node's own name among the members."""

    def __init__(
        self,
        node: str,
        view: Callable[[], View],
        discovery: Discovery,
        negative: NegativeCache,
        clock: Clock,
    ) -> None:
        self.node = node
        self._view = view
        self._discovery = discovery
        self._negative = negative
        self._clock = clock

    def known(self) -> Known:
        members = [
            Neighbour(m.node, m.zone, m.transfer, m.node == self.node)
            for m in self._view().members.values()
        ]
        cooling = [
            Cooling(str(digest), c.failure.name.lower(), c.remaining, c.until, c.failures)
            for digest, c in self._negative.cooling()
        ]
        return Known(self.node, self._discovery.health(), members[:SHOWN], cooling[:SHOWN])

    async def holders(self, digests: Sequence[Digest], store: Store) -> list[Holds]:
        """Who has each of ``digests``, in their order."""
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(digest: Digest) -> Holds:
            async with slots:
                here = await store.has(digest)
                if len(self._view()) < 2:
                    return Holds(str(digest), here, [])
                if not self._discovery.able:
                    return Holds(str(digest), here, None, "the DHT is not to be believed now")
                try:
                    async with self._clock.timeout(LOOKUP_SECONDS):
                        found = await self._discovery.find(digest)
                except (LeaseholdError, TimeoutError) as error:
                    return Holds(str(digest), here, None, str(error) or "nobody answered in time")
                return Holds(str(digest), here, sorted({h.node for h in found} - {self.node}))

        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(one(digest)) for digest in digests]
        return [task.result() for task in asked]
