"""The tables of the log, in SQLite and in PostgreSQL.

``entities`` holds one row an entity with its head, so that a compare-and-set reads one row;
``events`` is keyed by ``seq``, the commit order. An entity is known inside by its small ``eid``.
A newer release changes this only by a step in ``migrate``, never in place.
"""

from __future__ import annotations

REVISION = "0001"
"""The migration these tables stand at; stored in ``alembic_version`` like Alembic does."""

SQLITE = (
    """
    CREATE TABLE entities (
        eid INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        head TEXT,
        head_seq INTEGER NOT NULL,
        trimmed TEXT,
        UNIQUE (kind, id)
    )
    """,
    """
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY,
        eid INTEGER NOT NULL REFERENCES entities,
        id TEXT NOT NULL,
        parent TEXT,
        type TEXT NOT NULL,
        data BLOB NOT NULL,
        at REAL NOT NULL
    )
    """,
    "CREATE UNIQUE INDEX events_by_id ON events (eid, id)",
    "CREATE INDEX events_by_entity ON events (eid, seq)",
    """
    CREATE TABLE timers (
        eid INTEGER NOT NULL REFERENCES entities,
        name TEXT NOT NULL,
        due_at REAL NOT NULL,
        PRIMARY KEY (eid, name)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX timers_by_due ON timers (due_at)",
    """
    CREATE TABLE checkpoints (
        activity TEXT NOT NULL,
        eid INTEGER NOT NULL REFERENCES entities,
        tail TEXT,
        seq INTEGER NOT NULL,
        state BLOB NOT NULL,
        PRIMARY KEY (activity, eid)
    ) WITHOUT ROWID
    """,
    "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)",
    f"INSERT INTO alembic_version VALUES ('{REVISION}')",
)

POSTGRES = (
    """
    CREATE TABLE entities (
        eid BIGINT PRIMARY KEY,
        kind TEXT NOT NULL,
        id TEXT COLLATE "C" NOT NULL,
        head TEXT,
        head_seq BIGINT NOT NULL,
        trimmed TEXT,
        UNIQUE (kind, id)
    )
    """,
    """
    CREATE TABLE events (
        seq BIGINT PRIMARY KEY,
        eid BIGINT NOT NULL,
        id TEXT NOT NULL,
        parent TEXT,
        type TEXT NOT NULL,
        data BYTEA NOT NULL,
        at DOUBLE PRECISION NOT NULL
    )
    """,
    "CREATE UNIQUE INDEX events_by_id ON events (eid, id)",
    "CREATE INDEX events_by_entity ON events (eid, seq)",
    """
    CREATE TABLE timers (
        eid BIGINT NOT NULL,
        name TEXT NOT NULL,
        due_at DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (eid, name)
    )
    """,
    "CREATE INDEX timers_by_due ON timers (due_at)",
    """
    CREATE TABLE checkpoints (
        activity TEXT NOT NULL,
        eid BIGINT NOT NULL,
        tail TEXT,
        seq BIGINT NOT NULL,
        state BYTEA NOT NULL,
        PRIMARY KEY (activity, eid)
    )
    """,
    "CREATE TABLE counters (last_seq BIGINT NOT NULL, last_eid BIGINT NOT NULL)",
    "INSERT INTO counters VALUES (0, 0)",
    """
    CREATE TABLE partitions (
        partition INTEGER PRIMARY KEY,
        owner TEXT NOT NULL,
        epoch BIGINT NOT NULL,
        expires_at DOUBLE PRECISION NOT NULL
    )
    """,
    "CREATE TABLE instances (id TEXT PRIMARY KEY, expires_at DOUBLE PRECISION NOT NULL)",
    "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)",
    f"INSERT INTO alembic_version VALUES ('{REVISION}')",
)
"""``counters`` is one row, changed under the writers' lock only, so numbers have no gaps; times in
``partitions`` and ``instances`` are the server's clock."""
