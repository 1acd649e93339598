"""Blocks, transactions and coverage in SQLite or PostgreSQL.

A write is one transaction: it locks the chain's row, looks which of the heights are there
already, inserts the rest in bulk (``COPY`` on PostgreSQL, ``executemany`` on SQLite) and joins the
heights to the coverage. So writing a height twice changes nothing, two managers that write the
same range leave the rows of one, and a killed writer leaves whole batches or nothing. A height
that is there with another hash is a conflict: the chain is not the one that was indexed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import and_, delete, event, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.service import Service
from leasehold.index import metrics, schema
from leasehold.index.ranges import Range, merged, runs
from leasehold.index.rows import Rows, block_of, rows_of, transaction_of
from leasehold.model.chain import IndexedBlock, Transaction

READ_BATCH = 100
"""Heights read from the database at once."""

log = get_logger(__name__)


class Store(Service):
    """``url`` is an SQLAlchemy URL; ``sqlite+aiosqlite:///path`` or ``postgresql+asyncpg://…``."""

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        super().__init__("index store", clock=clock)
        self.url = url
        self.engine: AsyncEngine
        self._chains: dict[tuple[str, str], int] = {}
        self._turn = asyncio.Lock()

    @classmethod
    def at(cls, path: Path, clock: Clock | None = None) -> Store:
        """A SQLite file."""
        return cls(f"sqlite+aiosqlite:///{path}", clock)

    async def start(self) -> None:
        self.engine = create_async_engine(self.url, pool_size=5, max_overflow=5)
        self.resources.push_async_callback(self.engine.dispose)
        if self.sqlite:
            event.listen(self.engine.sync_engine, "connect", _configure_sqlite)
            event.listen(self.engine.sync_engine, "begin", _begin_sqlite)
        async with self.engine.begin() as connection:
            if not self.sqlite:
                # Two managers that start together must not both create the tables.
                await connection.execute(select(func.pg_advisory_xact_lock(7_274_101)))
            await connection.run_sync(schema.metadata.create_all)

    @property
    def sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    # writing

    async def write(self, network: str, chain_id: str, heights: Sequence[IndexedBlock]) -> int:
        """Store whole heights, all or none; returns how many were new.

        LeaseholdError ``block_conflict`` when a height is stored with another hash.
        """
        if not heights:
            return 0
        chain = await self.chain(network, chain_id)
        wanted = {height.height: height for height in heights}
        began = time.perf_counter()
        async with self._writing() as connection:
            await self._lock(connection, chain)
            known = await connection.execute(
                select(schema.blocks.c.height, schema.blocks.c.hash).where(
                    schema.blocks.c.chain == chain, schema.blocks.c.height.in_(list(wanted))
                )
            )
            for number, hash_ in known:
                height = wanted.pop(number)
                if height.hash != hash_:
                    raise _conflict(network, chain_id, number, hash_, height.hash)
            if not wanted:
                return 0
            rows = rows_of(chain, [wanted[number] for number in sorted(wanted)])
            await self._insert(connection, rows)
            await self._cover(connection, chain, runs(wanted))
        metrics.WRITE_TIME.observe(time.perf_counter() - began)
        label = f"{network}/{chain_id}"
        metrics.STORED_BLOCKS.labels(label).inc(len(wanted))
        metrics.STORED_TXS.labels(label).inc(len(rows.transactions))
        return len(wanted)

    async def forget(self, network: str, chain_id: str, first: int, last: int) -> None:
        """Delete the heights ``first`` to ``last``, to fetch them again."""
        chain = await self.chain(network, chain_id)
        async with self._writing() as connection:
            await self._lock(connection, chain)
            for table in (schema.terms, schema.transactions, schema.blocks):
                await connection.execute(
                    delete(table).where(table.c.chain == chain, table.c.height.between(first, last))
                )
            covered = await self._coverage(connection, chain)
            kept: list[Range] = []
            for start, end in covered:
                kept += [(start, min(end, first - 1)), (max(start, last + 1), end)]
            await connection.execute(
                delete(schema.coverage).where(schema.coverage.c.chain == chain)
            )
            await self._cover(connection, chain, [r for r in set(kept) if r[0] <= r[1]])

    @contextlib.asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that writes: on SQLite it takes the file's lock before it looks.

        Writers of this process take turns here; SQLite's own way of waiting is to sleep and retry.
        """
        async with contextlib.AsyncExitStack() as stack:
            if self.sqlite:
                await stack.enter_async_context(self._turn)
            connection = await stack.enter_async_context(self.engine.connect())
            await connection.execution_options(sqlite_begin="IMMEDIATE")
            async with connection.begin():
                yield connection

    async def _lock(self, connection: AsyncConnection, chain: int) -> None:
        # SQLite's transactions begin immediate (see below), which is the same lock.
        if not self.sqlite:
            await connection.execute(
                select(schema.chains.c.id).where(schema.chains.c.id == chain).with_for_update()
            )

    async def _insert(self, connection: AsyncConnection, rows: Rows) -> None:
        raw = await connection.get_raw_connection()
        driver: Any = raw.driver_connection
        for table, records in (
            (schema.blocks, rows.blocks),
            (schema.transactions, rows.transactions),
            (schema.terms, rows.terms),
        ):
            if not records:
                continue
            if self.sqlite:
                marks = ", ".join("?" * len(table.columns))
                await driver.executemany(f"INSERT INTO {table.name} VALUES ({marks})", records)
            else:
                await driver.copy_records_to_table(
                    table.name, records=records, columns=schema.COLUMNS[table.name]
                )

    async def _cover(self, connection: AsyncConnection, chain: int, new: Sequence[Range]) -> None:
        """Join ranges to the coverage, touching only the rows they meet."""
        table = schema.coverage
        for first, last in new:
            meets = and_(
                table.c.chain == chain, table.c.first <= last + 1, table.c.last >= first - 1
            )
            met = (await connection.execute(select(table.c.first, table.c.last).where(meets))).all()
            whole = (min([first, *(r.first for r in met)]), max([last, *(r.last for r in met)]))
            if len(met) == 1 and met[0].first == whole[0]:
                await connection.execute(update(table).where(meets).values(last=whole[1]))
                continue
            if met:
                await connection.execute(delete(table).where(meets))
            await connection.execute(
                insert(table).values(chain=chain, first=whole[0], last=whole[1])
            )

    async def chain(self, network: str, chain_id: str) -> int:
        """The number of a chain, given on first use."""
        found = self._chains.get((network, chain_id))
        if found is None:
            table = schema.chains
            mine = and_(table.c.network == network, table.c.chain_id == chain_id)
            async with self._writing() as connection:
                if not self.sqlite:
                    await connection.execute(select(func.pg_advisory_xact_lock(7_274_102)))
                found = await connection.scalar(select(table.c.id).where(mine))
                if found is None:
                    await connection.execute(
                        insert(table).values(network=network, chain_id=chain_id)
                    )
                    found = await connection.scalar(select(table.c.id).where(mine))
            assert found is not None
            self._chains[network, chain_id] = found
        return int(found)

    async def follow_from(self, network: str, chain_id: str, default: int) -> int:
        """The height at which following began; ``default`` from now on if it never did."""
        chain = await self.chain(network, chain_id)
        table = schema.chains
        async with self._writing() as connection:
            await self._lock(connection, chain)
            found = await connection.scalar(select(table.c.follow_from).where(table.c.id == chain))
            if found is None and default > 0:
                found = default
                await connection.execute(
                    update(table).where(table.c.id == chain).values(follow_from=default)
                )
        return int(found or 0)

    # reading

    async def coverage(self, network: str, chain_id: str) -> list[Range]:
        """Ranges of heights that are stored, in order."""
        chain = await self.chain(network, chain_id)
        async with self.engine.connect() as connection:
            return merged(await self._coverage(connection, chain))

    async def _coverage(self, connection: AsyncConnection, chain: int) -> list[Range]:
        table = schema.coverage
        rows = await connection.execute(
            select(table.c.first, table.c.last).where(table.c.chain == chain)
        )
        return [(row.first, row.last) for row in rows]

    async def blocks(
        self, network: str, chain_id: str, first: int, last: int
    ) -> AsyncIterator[IndexedBlock]:
        """Stored heights from ``first`` to ``last``, in order; what is not stored is left out."""
        chain = await self.chain(network, chain_id)
        for start in range(first, last + 1, READ_BATCH):
            end = min(start + READ_BATCH - 1, last)
            async with self.engine.connect() as connection:
                block_rows = (
                    await connection.execute(
                        select(schema.blocks)
                        .where(
                            schema.blocks.c.chain == chain,
                            schema.blocks.c.height.between(start, end),
                        )
                        .order_by(schema.blocks.c.height)
                    )
                ).all()
                tx_rows = (
                    await connection.execute(
                        select(schema.transactions)
                        .where(
                            schema.transactions.c.chain == chain,
                            schema.transactions.c.height.between(start, end),
                        )
                        .order_by(schema.transactions.c.height, schema.transactions.c.position)
                    )
                ).all()
            by_height: dict[int, list[Transaction]] = {}
            for row in tx_rows:
                by_height.setdefault(row.height, []).append(transaction_of(row))
            for row in block_rows:
                block, events = block_of(row, chain_id)
                yield IndexedBlock(
                    block=block,
                    transactions=tuple(by_height.get(block.height, ())),
                    events=events,
                )

    async def chains(self) -> list[tuple[str, str]]:
        """Every (network, chain id) there is something of."""
        async with self.engine.connect() as connection:
            rows = await connection.execute(
                select(schema.chains.c.network, schema.chains.c.chain_id)
            )
            return sorted((row.network, row.chain_id) for row in rows)


def _configure_sqlite(connection: Any, _record: object) -> None:
    # The driver must not begin transactions by itself; _begin_sqlite does.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "busy_timeout = 10000",
        "cache_size = -16000",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Any) -> None:
    """Readers begin deferred; a write transaction takes the lock before it looks."""
    mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {mode}")


def _conflict(network: str, chain_id: str, height: int, stored: str, got: str) -> LeaseholdError:
    return LeaseholdError(
        "block_conflict",
        f"height {height} of {network}/{chain_id} is stored with another hash: the chain was"
        " started anew; give it another chain id or delete its index",
        kind=Kind.CONFLICT,
        expected=stored,
        got=got,
    )
