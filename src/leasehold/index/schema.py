"""The tables of the index, the same for SQLite and PostgreSQL.

``coverage`` holds the ranges of heights that are stored, kept in the same transaction as the rows,
so it is exact. ``terms`` is an inverted index: one row for each type, account, sender, recipient
and memo word of a transaction; search is joins on it. Rows carry no time of writing: whoever
writes a height writes the same rows.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
)

from leasehold.core import tables

metadata = MetaData()

SCHEMA = tables.Schema("index", metadata)
"""What a store prepares; see there how tables change."""

BIG = BigInteger().with_variant(Integer, "sqlite")

chains = Table(
    "index_chains",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("network", Text, nullable=False),
    Column("chain_id", Text, nullable=False),
    Column("follow_from", BIG),  # the first height a follower took; null: nobody follows
    UniqueConstraint("network", "chain_id"),
)

coverage = Table(
    "index_coverage",
    metadata,
    Column("chain", Integer, nullable=False),
    Column("first", BIG, nullable=False),
    Column("last", BIG, nullable=False),
    PrimaryKeyConstraint("chain", "first"),
)

blocks = Table(
    "index_blocks",
    metadata,
    Column("chain", Integer, nullable=False),
    Column("height", BIG, nullable=False),
    Column("hash", Text, nullable=False),
    Column("time", Text, nullable=False),
    Column("time_us", BIG, nullable=False),  # microseconds since 1970
    Column("epoch", Text, nullable=False),
    Column("num_txs", Integer, nullable=False),
    Column("events", LargeBinary, nullable=False),  # JSON
    PrimaryKeyConstraint("chain", "height"),
    Index("index_blocks_hash", "chain", "hash"),
    Index("index_blocks_time", "chain", "time_us"),
    sqlite_with_rowid=False,
)

transactions = Table(
    "index_transactions",
    metadata,
    Column("chain", Integer, nullable=False),
    Column("height", BIG, nullable=False),
    Column("position", Integer, nullable=False),
    Column("hash", Text, nullable=False),
    Column("time_us", BIG, nullable=False),
    Column("data", LargeBinary, nullable=False),  # JSON, without the two below
    Column("raw", LargeBinary, nullable=False),
    Column("raw_log", LargeBinary, nullable=False),
    PrimaryKeyConstraint("chain", "height", "position"),
    Index("index_transactions_hash", "chain", "hash"),
)

terms = Table(
    "index_terms",
    metadata,
    Column("chain", Integer, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("value", Text, nullable=False),
    Column("height", BIG, nullable=False),
    Column("position", Integer, nullable=False),
    PrimaryKeyConstraint("chain", "kind", "value", "height", "position"),
    sqlite_with_rowid=False,
)

TYPE, ACCOUNT, SENDER, RECIPIENT, MEMO = 1, 2, 3, 4, 5
"""``terms.kind``."""

COLUMNS = {
    table.name: [column.name for column in table.columns] for table in metadata.sorted_tables
}
