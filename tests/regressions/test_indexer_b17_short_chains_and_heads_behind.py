"""B17: unsigned subtraction went round for chains shorter than the window or a head behind.

Seen failing: with ``max(1, …)`` removed from ``latest_range``, a chain of 5 heights is asked for
height -995; without the early answer in ``last_data``, a head behind the mark is an error.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from leasehold.core.service import running
from leasehold.index.operations import SyncRange, latest_range
from leasehold.index.testing import FakeNode, indexing
from leasehold.model.chain import LatestData


@pytest.mark.parametrize(
    ("known", "head", "first"),
    [(0, 5, 1), (0, 5000, 4000), (10, 5000, 4000), (4990, 5000, 4991), (0, 1000, 1), (3, 4, 4)],
)
def test_first_height(known: int, head: int, first: int) -> None:
    assert latest_range(known, head, 1000) == first


async def test_head_behind_the_mark(tmp_path: Path) -> None:
    async with running(FakeNode()) as node:
        for _ in range(5):
            node.make()
        async with indexing(node, tmp_path) as operations:
            known = LatestData(network="cosmos", chain_id=node.chain_id, last_height=900)
            answer = await operations.last_data(known)
            assert (answer.last_height, answer.error) == (900, b"")
            short = LatestData(network="cosmos", chain_id=node.chain_id)
            assert (await operations.last_data(short)).last_height == 5
            done = SyncRange(
                network="cosmos", chain_id=node.chain_id, last_height=9, final_height=5
            )
            assert (await operations.sync_range(done)).last_height == 9
