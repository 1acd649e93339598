"""Provider instances as real processes on one PostgreSQL, each opening the log as the app does.

With the comparison of epochs in ``events.postgres_writer._fence`` made to accept all, the paused
instance still appends after the second one has begun, and its test fails.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from leasehold.core.service import running
from leasehold.events.event import Entity, Event
from leasehold.events.postgres import PostgresLog

TTL = 1.5


class Instance:
    """``name`` is also its folder; instances of one folder are one instance, restarted."""

    def __init__(self, url: str, folder: Path) -> None:
        self.name = folder.name
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("instance.py"), url, folder, str(TTL)],
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def rest(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.read().split()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def start(database: str, tmp_path: Path) -> Iterator[type]:
    made: list[Instance] = []

    def make(name: str) -> Instance:
        made.append(Instance(database, tmp_path / name))
        return made[-1]

    yield make  # type: ignore[misc]
    for instance in made:
        instance.close()


async def names(database: str) -> list[str]:
    """Who appended, in order."""
    async with running(PostgresLog(database)) as log:
        events = [e async for e in log.read(Entity("thing", "one")) if isinstance(e, Event)]
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    return [e.id.partition("-")[0] for e in events]


async def test_one_instance_at_a_time_and_the_next_within_one_ttl_of_a_kill(
    database: str, start: type
) -> None:
    first = start("first")
    assert first.line() == "ready"
    second, third = start("second"), start("third")
    # The first lives: the others wait for one lease and say so.
    assert [second.line(), third.line()] == ["log_in_use"] * 2
    assert second.process.wait(10) == 1
    second = start("second")
    first.process.kill()
    killed = time.monotonic()
    assert second.line() == "ready"
    # One lease, and what the process itself takes to start on a busy machine.
    assert time.monotonic() - killed < TTL + 4.0
    assert second.line().isdigit()
    second.process.kill()
    again = start("second")
    assert again.line() == "ready"
    assert again.line().isdigit()
    again.close()
    order = await names(database)
    assert order == sorted(order), "first, then second, and never mixed"


async def test_a_paused_instance_that_wakes_up_is_refused_and_ends(
    database: str, start: type
) -> None:
    first = start("first")
    assert first.line() == "ready"
    assert first.line().isdigit()
    first.process.send_signal(signal.SIGSTOP)
    second = start("second")
    assert second.line() == "ready"
    taken = int(second.line())
    first.process.send_signal(signal.SIGCONT)
    assert first.process.wait(10) == 1
    lines = first.rest()
    assert lines[-1] == "log_in_use"
    assert all(int(line) < taken for line in lines if line.isdigit())
    second.close()
    order = await names(database)
    assert order == sorted(order)


async def test_a_second_process_of_the_same_name_fences_the_first(
    database: str, start: type
) -> None:
    """The state folder's lock forbids it on one host; on copied machines only the epoch does."""
    first = start("same")
    assert first.line() == "ready"
    second = start("same")
    assert second.line() == "ready"
    assert first.process.wait(10) == 1
    assert second.line().isdigit()
