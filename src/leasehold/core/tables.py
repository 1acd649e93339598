"""Tables that may change from release to release, in SQLite and PostgreSQL.

A :class:`Schema` says what its tables look like now and how to get there from each revision before.
The revision a database stands at is kept in ``<name>_version``, in the form in which Alembic keeps
its own (``version_table`` of its configuration), so its tools can look at it. :func:`prepare` runs
in one transaction under a lock: processes that start together do it once, and one that dies on the
way leaves the database as it was.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Column, Connection, MetaData, String, Table, func, insert, inspect, select
from sqlalchemy import update as update_row

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger

FIRST = "0001"
"""The revision of tables that are there without saying at which they stand."""

Step = Callable[[Connection], None]

log = get_logger(__name__)


@dataclass(frozen=True)
class Schema:
    """``steps``: revision to (the next revision, what leads to it)."""

    name: str
    metadata: MetaData
    revision: str = FIRST
    steps: Mapping[str, tuple[str, Step]] = field(default_factory=dict)


def prepare(connection: Connection, schema: Schema) -> str | None:
    """Make the tables, or bring them to ``schema.revision``; answers the revision before.

    LeaseholdError ``schema_unknown`` when no steps lead there: a newer release wrote them.
    """
    if connection.dialect.name != "sqlite":
        lock = zlib.crc32(schema.name.encode())
        connection.execute(select(func.pg_advisory_xact_lock(lock)))
    version = Table(
        f"{schema.name}_version",
        MetaData(),
        Column("version_num", String(32), primary_key=True),
    )
    there = set(inspect(connection).get_table_names())
    if version.name in there:
        found = connection.scalar(select(version.c.version_num))
    else:
        version.create(connection)
        found = FIRST if there & set(schema.metadata.tables) else None
        connection.execute(insert(version).values(version_num=found or schema.revision))
    if found is None:
        schema.metadata.create_all(connection)
        return None
    revision = found
    while revision != schema.revision:
        step = schema.steps.get(revision)
        if step is None:
            raise LeaseholdError(
                "schema_unknown",
                f"the tables of {schema.name} are at revision {found}, and nothing leads from there"
                f" to {schema.revision}; use the release that wrote them, or a newer one",
                kind=Kind.UNSUPPORTED,
                expected=schema.revision,
                got=found,
            )
        revision, migrate = step
        migrate(connection)
        connection.execute(update_row(version).values(version_num=revision))
        log.info("schema.migrated", schema=schema.name, revision=revision)
    return str(found)
