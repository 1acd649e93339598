"""B11: an end height of 0, as hash lookups send it, ended the worker process.

Seen failing: with ``wanted.end_height or wanted.start_height`` in ``checked_range`` replaced by
``wanted.end_height``, the range with an end of 0 is an error.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.dispatch.task import Call
from leasehold.index.cometbft import tx_hash
from leasehold.index.testing import FakeNode, FakeTx, indexing
from leasehold.model.chain import HeightRange


async def test_hash_lookup_and_odd_ranges(tmp_path: Path) -> None:
    async with running(FakeNode()) as node:
        for i in range(5):
            node.make([FakeTx(f"tx {i}".encode())])
        async with indexing(node, tmp_path) as operations:

            async def ask(**fields: object) -> list[str]:
                payload = msgspec.json.encode(HeightRange(**fields))  # type: ignore[arg-type]
                call = Call(
                    network="cosmos", chain_id=node.chain_id, type="GetTransactions",
                    payload=payload, timeout=10.0,
                )  # fmt: skip
                return [response.type for response in await operations.manager.call(call)]

            assert await ask(hash=tx_hash(b"tx 3")) == ["Block", "Transaction"]
            assert await ask(hash="00" * 32) == []
            assert await ask(start_height=2) == ["Block", "Transaction"]
            for wrong in (
                {"hash": "no hash"},
                {"start_height": 0, "end_height": 0},
                {"start_height": 3, "end_height": 2},
                {"start_height": -1, "end_height": 4},
                {"start_height": 1, "end_height": 10**9},
            ):
                with pytest.raises(LeaseholdError):
                    await ask(**wrong)
            assert await ask(start_height=1, end_height=2) == ["Block", "Transaction"] * 2
