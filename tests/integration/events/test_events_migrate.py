"""``leasehold db``: a log of an earlier revision is brought along with what is in it."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import asyncpg
import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.events import migrate, schema
from leasehold.events.conformance import A, history, new
from leasehold.events.postgres import PostgresLog
from leasehold.events.sqlite import SqliteLog

EARLIER = "0000"
"""A revision that never was: this one without the column of trimmed tails."""

STEP = "ALTER TABLE entities ADD COLUMN trimmed TEXT"


def earlier(statements: tuple[str, ...]) -> list[str]:
    older = [s.replace("        trimmed TEXT,\n", "") for s in statements]
    older = [s.replace(f"'{schema.REVISION}'", f"'{EARLIER}'") for s in older]
    assert older != list(statements)
    return [
        *older,
        "INSERT INTO entities (eid, kind, id, head, head_seq) VALUES (1, 'thing', 'a', '1', 1)",
        "INSERT INTO events VALUES (1, 1, '1', NULL, 't', '{}', 0)",
    ]


def make_sqlite(file: Path) -> str:
    db = sqlite3.connect(file)
    for statement in earlier(schema.SQLITE):
        db.execute(statement)
    db.commit()
    db.close()
    return str(file)


def make_postgres(url: str) -> str:
    async def make() -> None:
        db = await asyncpg.connect(url)
        for statement in earlier(schema.POSTGRES):
            await db.execute(statement)
        await db.execute("UPDATE counters SET last_seq = 1, last_eid = 1")
        await db.close()

    asyncio.run(make())
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A log of the earlier revision with one event."""
    if request.param == "sqlite":
        return make_sqlite(tmp_path / "events.sqlite3")
    return make_postgres(request.getfixturevalue("database"))


async def events_of(place: str) -> list[str]:
    log = PostgresLog(place) if place.startswith("postgres") else SqliteLog(place)
    async with running(log):
        await log.append(A, "1", [new("2")])
        return [e.id for e in await history(log, A)]


def test_an_earlier_revision_is_brought_along(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LeaseholdError) as refused:
        asyncio.run(events_of(place))
    assert refused.value.code == "log_schema_mismatch"
    with pytest.raises(LeaseholdError) as refused:
        migrate.upgrade(place)
    assert refused.value.code == "log_schema_unknown"
    # A step that fails half-way leaves everything as it was.
    broken = (STEP, "ALTER TABLE nothing ADD COLUMN x TEXT")
    monkeypatch.setitem(migrate.STEPS, EARLIER, (schema.REVISION, broken, broken))
    with pytest.raises((LeaseholdError, asyncpg.PostgresError)):
        migrate.upgrade(place)
    assert migrate.status(place)["revision"] == EARLIER
    monkeypatch.setitem(migrate.STEPS, EARLIER, (schema.REVISION, (STEP,), (STEP,)))
    done = migrate.upgrade(place)
    assert (done["from"], done["up_to_date"]) == (EARLIER, True)
    assert migrate.upgrade(place)["from"] == schema.REVISION
    assert asyncio.run(events_of(place)) == ["1", "2"]


def test_a_log_in_use_is_not_migrated(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_postgres(database)
    monkeypatch.setitem(migrate.STEPS, EARLIER, (schema.REVISION, (STEP,), (STEP,)))

    async def sql(text: str) -> None:
        db = await asyncpg.connect(database)
        await db.execute(text)
        await db.close()

    asyncio.run(sql("INSERT INTO instances VALUES ('other', 1e12)"))
    with pytest.raises(LeaseholdError) as refused:
        migrate.upgrade(place)
    assert refused.value.code == "log_in_use"
    asyncio.run(sql("UPDATE instances SET expires_at = 1"))
    assert migrate.upgrade(place)["up_to_date"]
