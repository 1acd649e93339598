"""Blocks, transactions and coverage in SQLite or PostgreSQL.

A write is one transaction (see ``writing``): it locks the chain's row, looks which of the heights
are there already, inserts the rest in bulk and joins the heights to the coverage. So writing a
height twice changes nothing, two managers that write the same range leave the rows of one, and a
killed writer leaves whole batches or nothing. A height that is there with another hash is a
conflict: the chain is not the one that was indexed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, select
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from leasehold.core import tables
from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError, unavailable
from leasehold.core.logs import get_logger
from leasehold.core.service import Service, not_running
from leasehold.index import metrics, schema, writing
from leasehold.index.ranges import Range, merged
from leasehold.index.rows import block_of, rows_of, transaction_of
from leasehold.model.chain import IndexedBlock, Transaction

READ_BATCH = 100
"""Heights read from the database at once."""

HEALTH_INTERVAL = 10.0
"""Seconds between looks at the database, as the original's."""

HEALTH_TIMEOUT = 3.0
"""Seconds after which a database that does not answer is not ready."""

SQLITE_SIZE = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"

MAX_TOGETHER = 16
"""Writes that share a transaction at most."""

AWAY = (OperationalError, InterfaceError, OSError)
"""What a database that is full, restarting or out of reach makes the driver raise."""

log = get_logger(__name__)

_Outcome = tuple[int, int] | BaseException
_Waiting = tuple[writing.Write, asyncio.Future[tuple[int, int]]]
P = ParamSpec("P")
T = TypeVar("T")


class Store(Service):
    """``url`` is an SQLAlchemy URL; ``sqlite+aiosqlite:///path`` or ``postgresql+asyncpg://…``."""

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        super().__init__("index store", clock=clock)
        self.url = url
        self.engine: AsyncEngine
        self.problem: str | None = None
        """Why the database cannot be used, as last looked at; None when it can."""
        self._chains: dict[tuple[str, str], int] = {}
        self._waiting: list[_Waiting] = []
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._writer: Engine
        self._thread: ThreadPoolExecutor

    @classmethod
    def at(cls, path: Path, clock: Clock | None = None) -> Store:
        """A SQLite file."""
        return cls(f"sqlite+aiosqlite:///{path}", clock)

    async def start(self) -> None:
        self.engine = create_async_engine(self.url, pool_size=5, max_overflow=5)
        self.resources.push_async_callback(self.engine.dispose)
        if self.sqlite:
            event.listen(self.engine.sync_engine, "connect", _configure_sqlite)
            event.listen(self.engine.sync_engine, "begin", _begin_reading)
            # All writes on one connection of one thread: they take turns without asking the file.
            self._thread = ThreadPoolExecutor(1, "index-write")
            self._writer = create_engine(self.engine.url.set(drivername="sqlite"))
            self.resources.push_async_callback(asyncio.to_thread, self._stop_writer)
            event.listen(self._writer, "connect", _configure_sqlite)
            event.listen(self._writer, "begin", _begin_writing)
        await self._transact(tables.prepare, schema.SCHEMA)
        self.spawn(self._write_waiting(), name="write")
        self.spawn(self._look_after(), name="health")

    async def _look_after(self) -> None:
        """Whether the database answers, how fast, and how large it is."""
        kind = self.engine.dialect.name
        name = Path(self.engine.url.database or "").name
        ping = metrics.DATABASE_PING.labels(kind, name)
        size = metrics.DATABASE_SIZE.labels(kind, name)
        ask = SQLITE_SIZE if self.sqlite else "SELECT pg_database_size(current_database())"
        while True:
            began = self.clock.monotonic()
            try:
                async with self.clock.timeout(HEALTH_TIMEOUT), self.engine.connect() as connection:
                    found = await connection.exec_driver_sql(ask)
                    size.set(found.scalar_one())
                    self.problem = None
                ping.observe(self.clock.monotonic() - began)
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                self.problem = f"the index's database does not answer: {type(error).__name__}"
                log.warning("store.unreachable", error=str(error)[:200])
            await self.clock.sleep(HEALTH_INTERVAL)

    def _stop_writer(self) -> None:
        self._thread.shutdown()
        self._writer.dispose()

    @property
    def sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    async def _transact(
        self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run ``work(connection, ...)`` in a transaction of its own that may write."""

        def transaction() -> T:
            with self._writer.begin() as connection:
                return work(connection, *args, **kwargs)

        try:
            if self.sqlite:
                return await asyncio.get_running_loop().run_in_executor(self._thread, transaction)
            async with self.engine.begin() as connection:
                return await connection.run_sync(work, *args, **kwargs)
        except AWAY as error:
            raise _away(error) from error

    @contextlib.asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self.engine.connect() as connection:
                yield connection
        except AWAY as error:
            raise _away(error) from error

    # writing

    async def write(self, network: str, chain_id: str, heights: Sequence[IndexedBlock]) -> int:
        """Store whole heights, all or none; returns how many were new.

        LeaseholdError ``block_conflict`` when a height is stored with another hash.
        """
        if not heights:
            return 0
        if self.stopping:
            raise not_running("the index store")
        chain = await self.chain(network, chain_id)
        done: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        self._waiting.append(((chain, heights), done))
        self._idle.clear()
        self._wanted.set()
        new, transactions = await done
        label = f"{network}/{chain_id}"
        metrics.STORED_BLOCKS.labels(label).inc(new)
        metrics.STORED_TXS.labels(label).inc(transactions)
        return new

    async def _write_waiting(self) -> None:
        """Writes that came while one was on its way to the disk go together in the next."""
        try:
            while True:
                if not self._waiting:
                    self._idle.set()
                await self._wanted.wait()
                self._wanted.clear()
                while self._waiting:
                    await self._write_some(self._waiting[:MAX_TOGETHER])
        finally:
            _resolve(self._waiting, [not_running("the index store")] * len(self._waiting))

    async def _write_some(self, batch: list[_Waiting]) -> None:
        began = time.perf_counter()
        outcomes = await self._outcomes([write for write, _ in batch])
        del self._waiting[: len(batch)]
        _resolve(batch, outcomes)
        metrics.WRITE_TIME.observe(time.perf_counter() - began)

    async def _outcomes(self, writes: list[writing.Write]) -> Sequence[_Outcome]:
        try:
            return await self._transact(writing.write_all, writes, rows_of)
        except Exception as error:
            if len(writes) == 1:
                return [error]
        # One of them cannot be written: the others must not fail with it.
        return [outcome for write in writes for outcome in await self._outcomes([write])]

    async def stop(self) -> None:
        """Finish the writes that were accepted."""
        await self._idle.wait()

    async def forget(self, network: str, chain_id: str, first: int, last: int) -> None:
        """Delete the heights ``first`` to ``last``, to fetch them again."""
        chain = await self.chain(network, chain_id)
        await self._transact(writing.forget, chain, first, last)

    async def chain(self, network: str, chain_id: str) -> int:
        """The number of a chain, given on first use."""
        found = self._chains.get((network, chain_id))
        if found is None:
            found = await self._transact(writing.chain, network, chain_id)
            self._chains[network, chain_id] = found
        return found

    async def follow_from(self, network: str, chain_id: str, default: int) -> int:
        """The height at which following began; ``default`` from now on if it never did."""
        chain = await self.chain(network, chain_id)
        return await self._transact(writing.follow_from, chain, default)

    # reading

    async def coverage(self, network: str, chain_id: str) -> list[Range]:
        """Ranges of heights that are stored, in order."""
        chain = await self.chain(network, chain_id)
        async with self._reading() as connection:
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
            async with self._reading() as connection:
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

    async def block_at(self, network: str, chain_id: str, time_us: int) -> tuple[int, str] | None:
        """Height and time of the first stored block at or after ``time_us``; None if none is."""
        chain = await self.chain(network, chain_id)
        b = schema.blocks.c
        query = select(b.height, b.time).where(b.chain == chain, b.time_us >= time_us)
        async with self._reading() as connection:
            row = (await connection.execute(query.order_by(b.time_us).limit(1))).first()
        return (row.height, row.time) if row is not None else None

    async def chains(self) -> list[tuple[str, str]]:
        """Every (network, chain id) there is something of."""
        async with self._reading() as connection:
            rows = await connection.execute(
                select(schema.chains.c.network, schema.chains.c.chain_id)
            )
            return sorted((row.network, row.chain_id) for row in rows)


def _away(error: Exception) -> LeaseholdError:
    """A full disk, a database that is restarting: it may be tried again."""
    cause = getattr(error, "orig", None) or error
    return unavailable("index_database_away", f"the index's database: {cause}")


def _resolve(batch: Sequence[_Waiting], outcomes: Sequence[_Outcome]) -> None:
    for (_, done), outcome in zip(batch, outcomes, strict=True):
        if done.done():
            continue  # whoever asked has left
        if isinstance(outcome, BaseException):
            done.set_exception(outcome)
        else:
            done.set_result(outcome)


def _configure_sqlite(connection: Any, _record: object) -> None:
    # The driver must not begin transactions by itself; _begin_reading and _begin_writing do.
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


def _begin_reading(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN DEFERRED")


def _begin_writing(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")  # take the lock before looking
