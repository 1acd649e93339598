"""Keeping the store inside its budget without losing the last copy in the cluster.

Over budget, the least recently used digests go first; but one that fewer than ``min_holders`` nodes
hold is passed over, and so is one whose holders cannot be counted: unknown is not plenty. When all
that is left is precious, the store stays over budget and says so. Only a short disk overrides that:
below the headroom digests go whoever else has them. Content in use (an image that is pinned or
held by a workload) never goes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.metrics import counter
from leasehold.images.ports import Announcer
from leasehold.images.settings import ImagesSettings
from leasehold.images.store import FileStore
from leasehold.model.digest import Digest

MEMO_SECONDS = 60.0
"""A count of holders is believed for so long."""

MEMO_ENTRIES = 10_000

EVICTED = counter("leasehold_images_evicted_total", "Digests evicted", ["why"])
FORCED = counter("p2p_cache_forced_eviction_total", "Digests evicted because the disk was short")

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did; ``deferred`` digests would have gone but for their few holders."""

    evicted: int
    bytes: int
    deferred: int


class Evictor:
    """``in_use`` says which digests must stay."""

    def __init__(
        self,
        store: FileStore,
        settings: ImagesSettings,
        clock: Clock,
        in_use: Callable[[], set[Digest]],
        *,
        announcer: Announcer | None = None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.clock = clock
        self.in_use = in_use
        self.announcer = announcer
        self._lock = asyncio.Lock()
        self._counts: OrderedDict[Digest, tuple[float, int]] = OrderedDict()

    @property
    def needed(self) -> bool:
        return self.store.bytes > self.settings.budget_bytes or self._short

    @property
    def _short(self) -> bool:
        return self.store.free < self.store.headroom

    async def sweep(self) -> Swept:
        """Bring the store inside its budget; one sweep at a time."""
        async with self._lock:
            evicted = freed = deferred = 0
            keep = self.in_use()
            async for digest in self.store.digests():
                if not self.needed:
                    break
                if digest in keep:
                    continue
                forced = self._short
                if not forced and not await self._plenty(digest):
                    deferred += 1
                    continue
                size = await self.store.size(digest) or 0
                if await self.store.delete(digest):
                    evicted, freed = evicted + 1, freed + size
                    EVICTED.labels("disk" if forced else "budget").inc()
                    if forced:
                        FORCED.inc()
                        log.warning("images.evicted.forced", digest=digest, bytes=size)
                    if self.announcer is not None:
                        self.announcer.withdraw(digest)
            if self.needed:
                log.warning(
                    "images.store.over_budget",
                    bytes=self.store.bytes,
                    budget=self.settings.budget_bytes,
                    deferred=deferred,
                )
            return Swept(evicted, freed, deferred)

    async def _plenty(self, digest: Digest) -> bool:
        """Whether enough others hold ``digest``; alone there are no others to count."""
        if self.announcer is None:
            return True
        now = self.clock.monotonic()
        known = self._counts.get(digest)
        if known is None or now - known[0] > MEMO_SECONDS:
            try:
                known = (now, await self.announcer.holder_count(digest))
            except (LeaseholdError, TimeoutError, OSError):
                return False
            self._counts[digest] = known
            self._counts.move_to_end(digest)
            while len(self._counts) > MEMO_ENTRIES:
                self._counts.popitem(last=False)
        return known[1] >= self.settings.min_holders
