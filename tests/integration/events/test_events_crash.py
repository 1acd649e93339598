"""SIGKILL in the middle of an append storm: what was acknowledged is there, the rest whole."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.events.event import Entity, Event
from leasehold.events.sqlite import SqliteLog

STORM = Path(__file__).with_name("append_storm.py")


def storm(path: Path, run: str, acknowledged: int) -> list[list[str]]:
    """Run the storm until that many appends were acknowledged, then SIGKILL it."""
    process = subprocess.Popen([sys.executable, STORM, path, run], stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(acknowledged)]
    process.kill()
    lines += process.stdout.readlines()
    process.wait()
    return [line.decode().split() for line in lines if line.endswith(b"\n")]


async def test_nothing_acknowledged_is_lost_by_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    acknowledged: list[list[str]] = []
    for kill, count in enumerate((1, 17, 150, 700)):
        acknowledged += await asyncio.to_thread(storm, path, f"r{kill}", count)
        async with running(SqliteLog(path)) as log:
            everything = [event async for event in log.read_all()]
            assert [e.seq for e in everything] == list(range(1, len(everything) + 1))
            chains: dict[Entity, list[Event]] = defaultdict(list)
            for event in everything:
                chain = chains[event.entity]
                assert event.parent == (chain[-1].id if chain else None)
                chain.append(event)
            for entity, chain in chains.items():
                assert [e async for e in log.read(entity)] == chain
                for one, two in zip(chain[::2], chain[1::2], strict=True):
                    assert (one.id[:-1], one.id[-1], two.id[-1]) == (two.id[:-1], "a", "b")
            stored = {(e.entity.id, e.id) for e in everything}
            newest: dict[str, int] = {}
            for entity_id, one_id, two_id, n, i in acknowledged:
                assert {(entity_id, one_id), (entity_id, two_id)} <= stored
                if one_id.startswith(f"r{kill}-"):
                    newest[n] = int(i)
            for timer in await log.due_timers(1e12):
                n = timer.name.removeprefix("writer-")
                if n in newest:  # of this run; the append after it may be durable, unsaid
                    assert timer.due_at in (newest[n], newest[n] + 1)
                checkpoints = await log.checkpoints(timer.name)
                ((entity, checkpoint),) = checkpoints.items()
                assert checkpoint.tail is not None
                assert (entity.id, checkpoint.tail) in stored


async def test_a_second_process_is_told_who_has_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with running(SqliteLog(path)):
        with pytest.raises(LeaseholdError) as refused:
            async with running(SqliteLog(path)):
                pass
    assert refused.value.code == "log_in_use"
    async with running(SqliteLog(path)) as log:
        assert await log.last_seq() == 0


async def test_a_damaged_or_foreign_file_is_refused_in_plain_words(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    path.write_bytes(b"this is no database, and long enough to be read as one" * 20)
    with pytest.raises(LeaseholdError) as refused:
        async with running(SqliteLog(path)):
            pass
    assert refused.value.code == "log_cannot_open"
    assert str(path) in refused.value.message


async def test_a_file_of_another_release_asks_for_a_migration(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    async with running(SqliteLog(path)):
        pass
    with sqlite3.connect(path) as db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
    db.close()
    with pytest.raises(LeaseholdError) as refused:
        async with running(SqliteLog(path)):
            pass
    assert refused.value.code == "log_schema_mismatch"
    assert refused.value.got == "9999"
