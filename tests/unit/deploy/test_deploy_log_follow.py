"""A follower of a log that is rotated sees every line once, whenever it looks."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leasehold.deploy import logs
from leasehold.deploy.keeper.logs import LogFile

HEAD = "2026-01-01T00:00:00.000000Z stdout F "


def put(log: LogFile, number: int) -> None:
    log.write(f"{HEAD}line {number}\n".encode())


@settings(max_examples=150, deadline=None)
@given(looks=st.lists(st.integers(0, 9), max_size=12), batch=st.sampled_from([1, 3, 1000]))
def test_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, looks: list[int], batch: int
) -> None:
    """Seen to fail when a follower goes straight to the newest file, or leaves its old one at the
    end it had before it looked for another.
    """
    path = tmp_path_factory.mktemp("logs") / "web" / "0.log"
    log = LogFile(str(path), limit=150, files=50)  # three lines a file
    put(log, 0)
    reader = logs._Reader(path, "web")
    before, logs.BATCH = logs.BATCH, batch
    written, seen = 1, []
    try:
        for lines in (*looks, 0):
            for _ in range(lines):
                put(log, written)
                written += 1
            seen += reader.more()
            while reader.behind:
                seen += reader.more()
    finally:
        logs.BATCH = before
        reader.close()
        log.close()
    assert [line.text for line in seen] == [f"line {n}" for n in range(written)]


async def test_a_writer_in_a_hurry_loses_nothing(tmp_path: Path) -> None:
    count, ended = 20_000, asyncio.Event()
    log = LogFile(str(tmp_path / "web" / "0.log"), limit=20_000, files=1000)

    def write() -> None:
        for number in range(count):
            put(log, number)
        log.close()

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    async for line in logs.read(tmp_path, None, tail=None, ended=ended):
        seen.append(line.text)
        if len(seen) == count:
            ended.set()
    await asyncio.to_thread(writer.join)
    assert seen == [f"line {number}" for number in range(count)]
