"""Brings a log to the schema of this release, offline, one revision after the other.

The revision is kept in ``alembic_version``, where Alembic and other tools look for it. ``STEPS``
lists what leads from one revision to the next, per backend; a fresh database is made whole by
``schema`` and needs none.
"""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

from leasehold.core.errors import Kind, LeaseholdError, not_found
from leasehold.events import schema
from leasehold.events.leases import WRITERS_LOCK

STEPS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {}
"""Revision -> (the next one, statements for SQLite, statements for PostgreSQL)."""


def status(place: str) -> dict[str, Any]:
    """``place`` is a file or a PostgreSQL URL."""
    found = _postgres(place, ()) if _is_url(place) else _sqlite(place, ())
    return {
        "log": "postgresql" if _is_url(place) else place,
        "revision": found,
        "needed": schema.REVISION,
        "up_to_date": found == schema.REVISION,
    }


def upgrade(place: str) -> dict[str, Any]:
    """Apply what is missing, all of it in one transaction."""
    now = status(place)["revision"]
    path: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
    revision = now
    while revision not in (None, schema.REVISION):
        step = STEPS.get(str(revision))
        if step is None:
            raise LeaseholdError(
                "log_schema_unknown",
                f"this release does not know how to get from revision {revision} to "
                f"{schema.REVISION}; use the release that wrote the log, or a newer one",
                kind=Kind.UNSUPPORTED,
                expected=schema.REVISION,
                got=revision,
            )
        path.append(step)
        revision = step[0]
    if _is_url(place):
        steps = [statement for step in path for statement in step[2]]
        _postgres(place, schema.POSTGRES if now is None else tuple(steps))
    else:
        steps = [statement for step in path for statement in step[1]]
        _sqlite(place, schema.SQLITE if now is None else tuple(steps))
    return {**status(place), "from": now}


def _is_url(place: str) -> bool:
    return place.startswith(("postgres://", "postgresql://"))


def _sqlite(place: str, statements: tuple[str, ...]) -> str | None:
    from leasehold.events.sqlite import lock_file, unlock_file

    if not statements and not Path(place).exists():
        raise not_found("event log", place, hint="It is made when a provider first starts.")
    lock = lock_file(Path(place)) if statements else None
    db = sqlite3.connect(place, isolation_level=None)
    try:
        db.execute("BEGIN IMMEDIATE" if statements else "BEGIN")
        for statement in statements:
            db.execute(statement)
        if statements:
            db.execute("UPDATE alembic_version SET version_num = ?", (schema.REVISION,))
        known = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
        row = db.execute("SELECT version_num FROM alembic_version").fetchone() if known else None
        db.execute("COMMIT")
        return str(row[0]) if row else None
    except sqlite3.DatabaseError as error:
        raise LeaseholdError(
            "log_cannot_open", f"cannot read {place}: {error}", kind=Kind.UNAVAILABLE
        ) from error
    finally:
        db.close()
        if lock is not None:
            unlock_file(lock)


def _postgres(url: str, statements: tuple[str, ...]) -> str | None:
    import asyncpg

    async def work() -> str | None:
        try:
            db = await asyncpg.connect(url)
        except (OSError, asyncpg.PostgresError, asyncpg.InternalClientError) as error:
            raise LeaseholdError(
                "log_cannot_open", f"PostgreSQL: {error}", kind=Kind.UNAVAILABLE
            ) from error
        try:
            async with db.transaction():
                if statements:
                    await db.execute("SELECT pg_advisory_xact_lock($1)", WRITERS_LOCK)
                    await _refuse_in_use(db)
                for statement in statements:
                    await db.execute(statement)
                if statements:
                    await db.execute("UPDATE alembic_version SET version_num = $1", schema.REVISION)
                known = await db.fetchval("SELECT to_regclass('alembic_version')::text")
                found = known and await db.fetchval("SELECT version_num FROM alembic_version")
                return str(found) if found else None
        finally:
            await db.close()

    return asyncio.run(work())


async def _refuse_in_use(db: Any) -> None:
    if await db.fetchval("SELECT to_regclass('instances')::text") is None:
        return
    alive = await db.fetchval(
        "SELECT id FROM instances WHERE expires_at > extract(epoch FROM clock_timestamp()) LIMIT 1"
    )
    if alive is not None:
        raise LeaseholdError(
            "log_in_use",
            f"the instance {alive} uses this event log; stop it first",
            kind=Kind.CONFLICT,
            got=alive,
        )
