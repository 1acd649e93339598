"""B18: every second call replayed an old result, ``processing`` never came, the nonce was lost.

Seen failing: with ``self._under_way.add(key)`` removed, two calls at once both do the work; with
``nonce=known.nonce`` removed from ``_answer``, the nonce is gone.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from leasehold.core.service import running
from leasehold.index.operations import SyncRange
from leasehold.index.testing import FakeNode, indexing
from leasehold.model.chain import LatestData


async def test_each_tick_moves_on(tmp_path: Path) -> None:
    async with running(FakeNode()) as node:
        async with indexing(node, tmp_path) as operations:
            known = LatestData(
                network="cosmos", chain_id=node.chain_id, task_id="t", nonce=b"\0\xffn"
            )
            for head in (3, 6, 9):
                for _ in range(3):
                    node.make()
                known = await operations.last_data(known)
                assert (known.last_height, known.task_id, known.nonce) == (head, "t", b"\0\xffn")
            for _ in range(700):
                node.make()
            range_ = SyncRange(
                network="cosmos", chain_id=node.chain_id, last_height=9, final_height=650
            )
            both = await asyncio.gather(
                operations.sync_range(range_), operations.sync_range(range_)
            )
            assert sorted(a.processing for a in both) == [False, True]
            refused = next(a for a in both if a.processing)
            assert (refused.last_height, refused.retry_count) == (9, 1)
            for expected in (309, 609, 650, 650):
                answer = await operations.sync_range(range_)
                assert answer.last_height == expected
                range_.last_height = answer.last_height
