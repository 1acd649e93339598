"""Every backend passes the one suite of the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from leasehold.core.service import running
from leasehold.events.conformance import CASES, Case
from leasehold.events.memory import MemoryLog
from leasehold.events.sqlite import SqliteLog


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_memory(case: Case) -> None:
    await case(MemoryLog())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_sqlite(case: Case, tmp_path: Path) -> None:
    async with running(SqliteLog(tmp_path / "log.db")) as log:
        await case(log)
