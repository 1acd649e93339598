"""A puller that stalls is passed over: the next rank is asked to fetch.

In the original a stalled first rank was skipped as somebody to wait for, but asked again to fetch,
answered that it was doing so already, and was waited for once more. Leave out ``node not in
stalled`` in rule 7 of ``Resolver._pass`` and the stalled node is the one that is asked.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.images.coord.messages import (
    ALREADY_PULLING,
    STARTED,
    Intent,
    PleasePullRequest,
    PleasePullResponse,
    PullResult,
)
from leasehold.images.gate import DirectGate
from leasehold.images.inflight import InFlight
from leasehold.images.membership import Member, View
from leasehold.images.ports import ContentKind, Holder
from leasehold.images.resolver import Resolver
from leasehold.model.digest import Digest

DIGEST = Digest("sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")
FIRST, SECOND = "node-e", "node-a"
"""The first two ranks of the digest among node-a to node-e."""


class Neighbours:
    """Five nodes; the first rank says it has been fetching, without a byte for a long time."""

    def __init__(self, stalled: Intent) -> None:
        self.stalled = stalled
        self.pulled: list[str] = []

    def connected(self, node: str) -> bool:
        return True

    async def pull_intent_query(
        self, node: str, digest: Digest, seconds: float | None = None
    ) -> Intent:
        return self.stalled if node == FIRST else Intent(hrw_rank=1)

    async def please_pull(self, node: str, request: PleasePullRequest) -> PleasePullResponse:
        self.pulled.append(node)
        outcome = ALREADY_PULLING if node == FIRST else STARTED
        return PleasePullResponse((PullResult(DIGEST, outcome, started_at=0.0, told=True),))

    async def find(self, digest: Digest, limit: int) -> Sequence[Holder]:
        return []

    def health(self) -> float:
        return 1.0


@pytest.mark.parametrize(
    "stalled",
    [
        Intent(in_flight=True, started_at=0.0, told=True, age=900.0, silence=600.0),
        Intent(in_flight=True, started_at=0.0),  # an original agent: only its start is known
    ],
)
def test_the_next_rank_fetches(virtual: VirtualClock, stalled: Intent) -> None:
    async def main() -> None:
        world: Any = Neighbours(stalled)
        view = View(Member(node=f"node-{n}", transfer=f"{n}:1") for n in "abcde")
        gate: Any = DirectGate(
            virtual, InFlight(virtual), health=world.health, members=lambda: 5,
            held_elsewhere=world.find, bootstrapping=lambda: False,
        )  # fmt: skip
        tasks = []
        resolver = Resolver(
            "observer", lambda: view, world, world, world, gate, virtual,
            spawn=lambda coro: tasks.append(asyncio.ensure_future(coro)), rng=random.Random(1),
        )  # fmt: skip
        found = await resolver.resolve(DIGEST, ContentKind.BLOB, "r.example", "a/b", 1 << 20)
        assert world.pulled == [SECOND]
        assert [holder.node for holder in found.holders] == [SECOND]

    virtual.run(main)
