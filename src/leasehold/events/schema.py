"""The tables of the log in SQLite.

``entities`` holds one row an entity with its head, so that a compare-and-set reads one row;
``events`` is keyed by ``seq``, the commit order. An entity is known inside by its small ``eid``.
A newer release changes this only by a migration (see ``migrations``), never in place.
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
