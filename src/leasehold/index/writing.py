"""What is written in one transaction: plain functions on an open connection, for both databases.

Each takes the chain's row first, so writers of one chain take turns. Rows go in by ``COPY`` on
PostgreSQL. On SQLite they go in many to a statement: its driver gives Python's lock away and asks
for it back around every step, which beside a busy event loop costs more than the row itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Table, and_, delete, func, insert, select, update
from sqlalchemy.util import await_only

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.index import schema
from leasehold.index.ranges import Range, runs
from leasehold.index.rows import Rows
from leasehold.model.chain import IndexedBlock

CHAINS_LOCK = 7_274_102
"""PostgreSQL's advisory lock under which a chain gets its number."""

GROUPS = (256, 32, 4, 1)
"""Rows of one SQLite statement: the largest that fits is taken. SQLite allows 32,766 values."""

Write = tuple[int, Sequence[IndexedBlock]]
"""A chain and what to store of it."""

RowsOf = Callable[[int, Sequence[IndexedBlock]], Rows]


def write_all(
    connection: Connection, writes: Sequence[Write], rows_of: RowsOf
) -> list[tuple[int, int] | LeaseholdError]:
    """Several writes in one transaction; the outcome of each, a refused one changes nothing."""
    outcomes: dict[int, tuple[int, int] | LeaseholdError] = {}
    # By chain, so that two managers that write several chains never wait for each other.
    for position in sorted(range(len(writes)), key=lambda at: writes[at][0]):
        chain, heights = writes[position]
        try:
            outcomes[position] = write(connection, chain, heights, rows_of)
        except LeaseholdError as error:
            outcomes[position] = error
    return [outcomes[position] for position in range(len(writes))]


def write(
    connection: Connection, chain: int, heights: Sequence[IndexedBlock], rows_of: RowsOf
) -> tuple[int, int]:
    """Store what is new of ``heights``; how many heights and transactions that were.

    LeaseholdError ``block_conflict``, before anything is changed, when a height is stored with
    another hash.
    """
    lock(connection, chain)
    wanted = {height.height: height for height in heights}
    table = schema.blocks.c
    known = connection.execute(
        select(table.height, table.hash).where(
            table.chain == chain,
            table.height.between(min(wanted), max(wanted)),
            table.height.in_(list(wanted)),
        )
    )
    for number, hash_ in known:
        height = wanted.pop(number)
        if height.hash != hash_:
            raise _conflict(height, hash_)
    if not wanted:
        return 0, 0
    rows = rows_of(chain, [wanted[number] for number in sorted(wanted)])
    for target, records in (
        (schema.blocks, rows.blocks),
        (schema.transactions, rows.transactions),
        (schema.terms, rows.terms),
    ):
        if records:
            _insert(connection, target, records)
    cover(connection, chain, runs(wanted))
    return len(wanted), len(rows.transactions)


def lock(connection: Connection, chain: int) -> None:
    """Other writers of the chain wait. SQLite's begin immediate, which is the same lock."""
    if connection.dialect.name != "sqlite":
        connection.execute(
            select(schema.chains.c.id).where(schema.chains.c.id == chain).with_for_update()
        )


def _insert(connection: Connection, table: Table, records: list[tuple[Any, ...]]) -> None:
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name != "sqlite":
        await_only(
            driver.copy_records_to_table(
                table.name, records=records, columns=schema.COLUMNS[table.name]
            )
        )
        return
    at = 0
    for size in GROUPS:
        statement = _statement(table, size)
        while len(records) - at >= size:
            values = [value for record in records[at : at + size] for value in record]
            driver.execute(statement, values)
            at += size


def _statement(table: Table, rows: int) -> str:
    marks = f"({', '.join('?' * len(table.columns))})"
    return f"INSERT INTO {table.name} VALUES {', '.join([marks] * rows)}"


def cover(connection: Connection, chain: int, new: Sequence[Range]) -> None:
    """Join ranges to the coverage, touching only the rows they meet."""
    table = schema.coverage
    for first, last in new:
        meets = and_(table.c.chain == chain, table.c.first <= last + 1, table.c.last >= first - 1)
        met = connection.execute(select(table.c.first, table.c.last).where(meets)).all()
        whole = (min([first, *(r.first for r in met)]), max([last, *(r.last for r in met)]))
        if len(met) == 1 and met[0].first == whole[0]:
            connection.execute(update(table).where(meets).values(last=whole[1]))
            continue
        if met:
            connection.execute(delete(table).where(meets))
        connection.execute(insert(table).values(chain=chain, first=whole[0], last=whole[1]))


def forget(connection: Connection, chain: int, first: int, last: int) -> None:
    """Delete the heights ``first`` to ``last``."""
    lock(connection, chain)
    for table in (schema.terms, schema.transactions, schema.blocks):
        connection.execute(
            delete(table).where(table.c.chain == chain, table.c.height.between(first, last))
        )
    covered = schema.coverage
    mine = covered.c.chain == chain
    rows = connection.execute(select(covered.c.first, covered.c.last).where(mine)).all()
    connection.execute(delete(covered).where(mine))
    kept: set[Range] = set()
    for row in rows:
        kept |= {(row.first, min(row.last, first - 1)), (max(row.first, last + 1), row.last)}
    cover(connection, chain, sorted(r for r in kept if r[0] <= r[1]))


def chain(connection: Connection, network: str, chain_id: str) -> int:
    """The number of a chain, given on first use."""
    table = schema.chains
    mine = and_(table.c.network == network, table.c.chain_id == chain_id)
    if connection.dialect.name != "sqlite":
        connection.execute(select(func.pg_advisory_xact_lock(CHAINS_LOCK)))
    found = connection.scalar(select(table.c.id).where(mine))
    if found is None:
        connection.execute(insert(table).values(network=network, chain_id=chain_id))
        found = connection.scalar(select(table.c.id).where(mine))
    assert found is not None
    return int(found)


def follow_from(connection: Connection, chain: int, default: int) -> int:
    """The height at which following began; ``default`` from now on if it never did."""
    lock(connection, chain)
    table = schema.chains
    found = connection.scalar(select(table.c.follow_from).where(table.c.id == chain))
    if found is None and default > 0:
        found = default
        connection.execute(update(table).where(table.c.id == chain).values(follow_from=default))
    return int(found or 0)


def _conflict(height: IndexedBlock, stored: str) -> LeaseholdError:
    return LeaseholdError(
        "block_conflict",
        f"height {height.height} of {height.block.chain_id} is stored with another hash: the chain"
        " was started anew; give it another chain id or delete its index",
        kind=Kind.CONFLICT,
        expected=stored,
        got=height.hash,
    )
