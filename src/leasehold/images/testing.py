"""A resolver among five neighbours that say what a test wants; no wire, no store, virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any

from leasehold.core.clock import VirtualClock
from leasehold.images.coord.messages import (
    STARTED,
    Intent,
    PleasePullRequest,
    PleasePullResponse,
    PullResult,
)
from leasehold.images.gate import DirectGate
from leasehold.images.inflight import InFlight
from leasehold.images.membership import Member, View
from leasehold.images.ports import ContentKind, Holder, Resolution
from leasehold.images.resolver import Resolver
from leasehold.model.digest import Digest
from leasehold.p2p.errors import PeerError

DIGEST = Digest("sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")
ORDER = ["node-e", "node-a", "node-c", "node-d", "node-b"]
"""Its ranks among node-a to node-e: the vector of the specification."""


class Neighbours:
    """Five neighbours and ``resolver``, the node ``me`` among (or beside) them.

    ``says[node]`` is its answer to a question, None for silence, ``slow[node]`` the seconds it
    takes; ``pulls[node]`` what it says to please_pull (default: started); ``found`` are the
    records of the DHT, ``score`` its health. ``asked``, ``pulled`` and ``lookups`` tell what was
    done.
    """

    def __init__(
        self,
        clock: VirtualClock,
        me: str = "observer",
        *,
        zones: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.clock = clock
        self.me = me
        members = [
            Member(node=n, transfer=f"{n}:1", zone=(zones or {}).get(n, "")) for n in {*ORDER, me}
        ]
        if me not in ORDER:
            # An observer outside the ranks, so that the five keep theirs.
            members = [m for m in members if m.node != me]
        self.view = View(members)
        self.says: dict[str, Intent | None] = {n: self.fresh(n) for n in ORDER}
        self.pulls: dict[str, PullResult | Exception] = {}
        self.asked: list[str] = []
        self.pulled: list[str] = []
        self.found: list[Holder] = []
        self.slow: dict[str, float] = {}
        self.score = 1.0
        self.lookups = 0
        self.tasks: set[asyncio.Task[None]] = set()

        async def nobody(_: Digest) -> bool:
            return False

        gate = DirectGate(
            clock, InFlight(clock), health=lambda: self.score, members=lambda: 5,
            held_elsewhere=nobody, bootstrapping=lambda: False,
        )  # fmt: skip
        self.resolver = Resolver(
            me, lambda: self.view, self, self, self, gate, clock, spawn=self._spawn,
            rng=random.Random(1), **options,
        )  # fmt: skip

    def _spawn(self, coro: Any) -> None:
        task = asyncio.ensure_future(coro)
        self.tasks.add(task)

    def fresh(self, node: str, **changes: Any) -> Intent:
        return Intent(hrw_rank=self.view.ranking.rank(DIGEST, node), **changes)

    def connected(self, node: str) -> bool:
        return node in self.slow

    async def pull_intent_query(
        self, node: str, digest: Digest, seconds: float | None = None
    ) -> Intent:
        self.asked.append(node)
        await self.clock.sleep(self.slow.get(node, 0.0))
        said = self.says[node]
        if said is None:
            raise PeerError("dial_failed", "silence")
        return said

    async def please_pull(self, node: str, request: PleasePullRequest) -> PleasePullResponse:
        return PleasePullResponse(tuple(self._pull(node, request.digests)))

    async def local_pull_intent(self, digest: Digest) -> Intent:
        return await self.pull_intent_query(self.me, digest)

    async def start_local_pull(
        self, registry: str, repository: str, kind: ContentKind,
        digests: Sequence[tuple[Digest, int | None]], authorization: str = "",
    ) -> list[PullResult]:  # fmt: skip
        return self._pull(self.me, [d for d, _ in digests])

    def _pull(self, node: str, digests: Sequence[str]) -> list[PullResult]:
        self.pulled.append(node)
        answer = self.pulls.get(node, PullResult(DIGEST, STARTED, started_at=1.0, told=True))
        if isinstance(answer, Exception):
            raise answer
        return [PullResult("sha256:" + "0" * 64, STARTED), answer]

    async def find(self, digest: Digest, limit: int) -> Sequence[Holder]:
        self.lookups += 1
        return self.found

    def health(self) -> float:
        return self.score

    async def resolve(self, kind: ContentKind = ContentKind.BLOB, **changes: Any) -> Resolution:
        options = {"registry": "r.example", "repository": "a/b", "size": None, **changes}
        return await self.resolver.resolve(DIGEST, kind, **options)
