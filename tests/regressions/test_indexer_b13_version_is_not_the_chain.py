"""B13: inserts stored the version as chain id, and continuity was checked on that, so always held.

Seen failing: with ``known.chain_id`` in ``Operations._advance`` replaced by ``known.version``,
nothing is stored for the chain and the gap is not seen.
"""

from __future__ import annotations

from pathlib import Path

from leasehold.core.service import running
from leasehold.index.testing import FakeNode, indexing
from leasehold.model.chain import LatestData


async def test_rows_belong_to_their_chain(tmp_path: Path) -> None:
    async with running(FakeNode()) as node:
        for _ in range(50):
            node.make()
        node.broken.add(25)
        async with indexing(node, tmp_path) as operations:
            known = LatestData(network="cosmos", chain_id=node.chain_id, version="0.0.1")
            answer = await operations.last_data(known)
            assert await operations.store.chains() == [("cosmos", node.chain_id)]
            assert (answer.chain_id, answer.version) == (node.chain_id, "0.0.1")
            assert b"missing 25" in answer.error
