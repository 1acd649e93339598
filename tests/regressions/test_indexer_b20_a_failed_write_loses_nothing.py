"""B20: rows were acknowledged before they were written, and a failed flush lost them.

Seen failing: with each statement committed by itself (SQLite's autocommit, by removing the listener
``_begin_writing`` of ``Store``), the block stays without its transactions after a failed write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leasehold.core.service import running
from leasehold.index import store as store_module
from leasehold.index.rows import Rows
from leasehold.index.search import Search, find
from leasehold.index.store import Store
from leasehold.model.chain import Block, IndexedBlock, Transaction


async def test_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = Block(hash="B", height=1, time="2026-01-01T00:00:00Z", num_txs=1)
    transaction = Transaction(
        hash="T", block_hash="B", height=1, memo="a memo with 'spaces' & | signs"
    )
    height = IndexedBlock(block=block, transactions=(transaction,))
    original = store_module.rows_of

    def broken(chain: int, heights: Any) -> Rows:
        rows = original(chain, heights)
        rows.transactions.append(rows.transactions[0])  # a duplicate key, after the block
        return rows

    async with running(Store.at(tmp_path / "index.db")) as store:
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "rows_of", broken)
            with pytest.raises(Exception, match="UNIQUE"):
                await store.write("n", "c", [height])
        assert await store.coverage("n", "c") == []
        assert [b async for b in store.blocks("n", "c", 1, 9)] == []
        assert await store.write("n", "c", [height]) == 1
        found = await find(store, Search(network="n", memo="with 'spaces' & |"))
        assert [tx.hash for tx in found.transactions] == ["T"]
