"""Two managers fetch the same range into one store and one is killed: the rows are those of one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from sqlalchemy import select

from leasehold.core.service import running
from leasehold.index import schema
from leasehold.index.store import Store
from leasehold.index.testing import FakeNode, FakeTx

HEIGHTS = 400
EVENTS = [("transfer", [("sender", "alice"), ("recipient", "bob"), ("amount", "5uakt")])]


async def sync(node: FakeNode, url: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "leasehold", "index", "sync", "--rpc", node.url, "--from", "1",
        "--to", str(HEIGHTS), "--store", url, env=dict(os.environ),
    )  # fmt: skip


async def contents(url: str) -> dict[str, list[tuple[object, ...]]]:
    out = {}
    async with running(Store(url)) as store, store.engine.connect() as connection:
        for table in (schema.coverage, schema.blocks, schema.transactions, schema.terms):
            order = list(table.primary_key.columns)
            rows = await connection.execute(select(table).order_by(*order))
            out[table.name] = [tuple(row) for row in rows]
    return out


@pytest.mark.timeout(110)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_one_of_two_is_killed(database: str, tmp_path: Path, postgres_url: str) -> None:
    url = postgres_url if database == "postgresql" else f"sqlite+aiosqlite:///{tmp_path / 'a.db'}"
    reference = f"sqlite+aiosqlite:///{tmp_path / 'reference.db'}"
    async with running(FakeNode()) as node:
        for height in range(HEIGHTS):
            node.make([FakeTx(f"{height}/{i}".encode(), EVENTS) for i in range(4)])
        first, second = await asyncio.gather(sync(node, url), sync(node, url))
        async with running(Store(url)) as store, asyncio.timeout(30):
            while not await store.coverage("cosmos", node.chain_id):
                await asyncio.sleep(0.002)
        await asyncio.sleep(random.uniform(0, 0.1))
        with contextlib.suppress(ProcessLookupError):
            first.send_signal(signal.SIGKILL)
        assert await first.wait() in (-signal.SIGKILL, 0)
        assert await second.wait() == 0
        again = await sync(node, reference)
        assert await again.wait() == 0
    killed, whole = await contents(url), await contents(reference)
    assert killed["index_coverage"] == [(1, 1, HEIGHTS)]
    assert killed == whole
    assert len(whole["index_transactions"]) == HEIGHTS * 4
