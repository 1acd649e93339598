"""Tables are made once, know their revision, and are brought along or refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, Table, Text, inspect, text
from sqlalchemy.ext.asyncio import create_async_engine

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.core.tables import Schema, prepare
from leasehold.index.store import Store

OLD = MetaData()
Table("things", OLD, Column("id", Integer, primary_key=True))
NEW = MetaData()
Table("things", NEW, Column("id", Integer, primary_key=True), Column("name", Text))


def add_name(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE things ADD COLUMN name TEXT"))


def fail(connection: Connection) -> None:
    add_name(connection)
    raise RuntimeError("on the way")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'tables.db'}"
    found: str = request.getfixturevalue("postgres_url")
    return found


async def test_a_step_is_taken_once_and_a_failed_one_leaves_no_trace(url: str) -> None:
    engine = create_async_engine(url)

    async def prepared(schema: Schema) -> str | None:
        async with engine.begin() as connection:
            return await connection.run_sync(prepare, schema)

    async def columns() -> set[str]:
        async with engine.connect() as connection:
            return {
                column["name"]
                for column in await connection.run_sync(lambda c: inspect(c).get_columns("things"))
            }

    try:
        assert await prepared(Schema("things", OLD, "0001")) is None
        assert await prepared(Schema("things", OLD, "0001")) == "0001"
        if not url.startswith(
            "sqlite"
        ):  # whose driver begins no transaction for DDL by itself, as stores do
            with pytest.raises(RuntimeError):
                await prepared(Schema("things", NEW, "0002", {"0001": ("0002", fail)}))
            assert await columns() == {"id"}
        now = Schema("things", NEW, "0002", {"0001": ("0002", add_name)})
        if url.startswith("sqlite"):
            assert await prepared(now) == "0001"
        else:  # both at once: one of them takes the step
            assert sorted(map(str, await asyncio.gather(prepared(now), prepared(now)))) == [
                "0001",
                "0002",
            ]
        assert await columns() == {"id", "name"}
        with pytest.raises(LeaseholdError) as newer:
            await prepared(Schema("things", OLD, "0001"))
        assert (newer.value.code, newer.value.got) == ("schema_unknown", "0002")
    finally:
        await engine.dispose()


async def test_a_store_refuses_a_database_of_a_newer_release(tmp_path: Path) -> None:
    store = Store.at(tmp_path / "index.db")
    async with running(store):
        pass
    async with running(Store.at(tmp_path / "index.db")) as again:
        async with again.engine.begin() as connection:
            await connection.execute(text("UPDATE index_version SET version_num = '9999'"))
            await connection.commit()
    with pytest.raises(LeaseholdError) as refused:
        async with running(Store.at(tmp_path / "index.db")):
            pass
    assert refused.value.code == "schema_unknown"
