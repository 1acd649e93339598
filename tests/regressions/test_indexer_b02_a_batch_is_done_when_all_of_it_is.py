"""B2: a call of many requests stopped at the first final, and progress passed a failed slice.

Seen failing: with ``reached = min(watermark(covered, first), last)`` in ``Operations._advance``
replaced by ``reached = last``, the answer says 100 although height 30 was never stored.
"""

from __future__ import annotations

from pathlib import Path

from leasehold.core.service import running
from leasehold.index.testing import FakeNode, indexing
from leasehold.model.chain import LatestData


async def test_progress_stops_before_a_slice_that_failed(tmp_path: Path) -> None:
    async with running(FakeNode()) as node:
        for _ in range(100):
            node.make()
        node.broken.add(30)
        async with indexing(node, tmp_path, latest_window=1000) as operations:
            known = LatestData(network="cosmos", chain_id=node.chain_id)
            answer = await operations.last_data(known)
            assert answer.last_height == 29
            assert b"missing 30-" in answer.error
            covered = await operations.store.coverage("cosmos", node.chain_id)
            assert covered[0] == (1, 29)
            assert covered[-1][1] == 100  # the slices that went well were kept
            node.broken.clear()
            answer = await operations.last_data(answer)
            assert (answer.last_height, answer.error) == (100, b"")
            assert await operations.store.coverage("cosmos", node.chain_id) == [(1, 100)]
