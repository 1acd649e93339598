"""The other nodes as the resolver sees them: who ranks, what they say, who is said to hold what.

All candidates are asked at once; who does not answer in time is left out. Ranks in the answers are
compared with ours: a difference means that members are known differently, and is counted.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Protocol

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.images.coord.messages import (
    Intent,
    PleasePullRequest,
    PleasePullResponse,
    PullResult,
)
from leasehold.images.coord.settings import CoordSettings
from leasehold.images.membership import View
from leasehold.images.ports import ContentKind, Holder
from leasehold.images.quarantine import Quarantine
from leasehold.model.digest import Digest

WARN_SECONDS = 10.0
"""Between two lines in the log about differing ranks."""

RECORDS = 20
"""Holders asked of the DHT."""

MISMATCH = metrics.counter(
    "p2p_hrw_rank_mismatch_total", "Answers whose rank differs from ours.", ("digest_kind",)
)

log = get_logger(__name__)


class Asker(Protocol):
    """Asks other nodes (``coord.client.Client``, or a simulator)."""

    def connected(self, node: str) -> bool:
        """Whether there is a connection: then silence is slowness, else perhaps death."""
        ...

    async def pull_intent_query(
        self, node: str, digest: Digest, seconds: float | None = None
    ) -> Intent: ...

    async def please_pull(self, node: str, request: PleasePullRequest) -> PleasePullResponse: ...


class Answerer(Protocol):
    """This node's own answers (``coord.server.Server``)."""

    async def local_pull_intent(self, digest: Digest) -> Intent: ...

    async def start_local_pull(
        self,
        registry: str,
        repository: str,
        kind: ContentKind,
        digests: Sequence[tuple[Digest, int | None]],
        authorization: str = "",
    ) -> list[PullResult]: ...


class Lookup(Protocol):
    """Records of holders (``discovery.Discovery``, or a simulator)."""

    async def find(self, digest: Digest, limit: int) -> Sequence[Holder]: ...

    def health(self) -> float: ...


class Neighbourhood:
    """``node`` is our name, ``zone`` the nodes elected among (empty: all)."""

    def __init__(
        self,
        node: str,
        view: Callable[[], View],
        ask: Asker,
        answer: Answerer,
        lookup: Lookup,
        clock: Clock,
        settings: CoordSettings,
        *,
        zone: str,
        rng: random.Random,
    ) -> None:
        self.node = node
        self.view = view
        self.ask = ask
        self.quarantine = Quarantine(clock)
        self._answer = answer
        self._lookup = lookup
        self._clock = clock
        self._settings = settings
        self._zone = zone if settings.zone_scope else ""
        self._rng = rng
        self._warn_after = float("-inf")

    @property
    def health(self) -> float:
        """How far the records of holders are to be believed, 0 to 1."""
        return self._lookup.health()

    def candidates(self, digest: Digest, count: int) -> list[str]:
        """The ``count`` best ranked nodes, best first."""
        view = self.view()
        ranking = view.zone(self._zone) if self._zone else view.ranking
        return ranking.top(digest, count)

    async def query(
        self,
        digest: Digest,
        names: Sequence[str],
        kind: ContentKind,
        seconds: float | None = None,
    ) -> dict[str, Intent]:
        """The answers of ``names`` in their order, all asked at once; silent ones are left out."""
        found: dict[str, Intent] = {}

        async def one(node: str) -> None:
            try:
                if node == self.node:
                    found[node] = await self._answer.local_pull_intent(digest)
                else:
                    found[node] = await self.ask.pull_intent_query(node, digest, seconds)
            except LeaseholdError:
                pass  # unreachable: the rules count who answers

        if len(names) == 1 and names[0] == self.node:
            await one(self.node)
        else:
            try:
                async with self._clock.timeout(seconds or self._settings.query_timeout):
                    async with asyncio.TaskGroup() as tasks:
                        for name in names:
                            tasks.create_task(one(name))
            except TimeoutError:
                pass
        ranking = self.view().ranking
        for node, answer in found.items():
            # Compared in the whole cluster, also when a zone elects: so the answer is computed.
            if node != self.node and answer.hrw_rank != ranking.rank(digest, node):
                MISMATCH.labels(kind.label).inc()
                self._warn_mismatch(node, answer.hrw_rank)
        return {name: found[name] for name in names if name in found}

    def _warn_mismatch(self, node: str, theirs: int) -> None:
        """The counter has them all; the log gets one a while, or a herd would drown in it."""
        now = self._clock.monotonic()
        if now >= self._warn_after:
            self._warn_after = now + WARN_SECONDS
            log.warning("resolver.hrw_rank_mismatch", node=node, theirs=theirs)

    async def find(self, digest: Digest) -> list[Holder]:
        """Holders by the DHT, without ourselves and those that let us down, in random order."""
        try:
            async with self._clock.timeout(self._settings.lookup_timeout):
                found = await self._lookup.find(digest, RECORDS)
        except (LeaseholdError, TimeoutError):
            return []
        holders = [h for h in found if h.node != self.node and not self.bad(digest, h.node)]
        self._rng.shuffle(holders)
        return holders

    def holder(self, node: str, *, complete: bool = True, puller: bool = False) -> Holder | None:
        """``node`` as somebody to fetch from; None when it says not where."""
        member = self.view().members.get(node)
        if member is None or not member.transfer:
            return None
        return member.holder(complete=complete, puller=puller)

    def bad(self, digest: Digest, node: str) -> bool:
        """True while ``node`` is not to be asked for ``digest``."""
        return self.quarantine.holds(digest, node)
