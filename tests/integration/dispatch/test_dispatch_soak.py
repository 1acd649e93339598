"""Workers in processes of their own, killed, stopped and restarted while tasks run.

Every caller gets exactly one outcome, and nothing is left behind. The big one is ``make soak``.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.dispatch.manager import Manager
from leasehold.dispatch.pool import Member, Pool
from leasehold.dispatch.session import Session
from leasehold.dispatch.settings import DispatchSettings
from leasehold.dispatch.task import Attempt, Call, Retry

EXAMPLE = Path(__file__).parents[3] / "examples" / "custom_worker" / "worker.py"


class Fleet:
    """Worker processes that something is done to at random."""

    def __init__(self, manager: Manager, size: int, rng: random.Random) -> None:
        assert manager.http is not None
        self.address = f"127.0.0.1:{manager.http.port}"
        self.size = size
        self.rng = rng
        self.processes: list[asyncio.subprocess.Process] = []
        self.done: Counter[str] = Counter()

    async def start_one(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, str(EXAMPLE), self.address,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip

    async def start(self) -> None:
        self.processes = [await self.start_one() for _ in range(self.size)]

    async def torment(self, pause: float) -> None:
        while True:
            await asyncio.sleep(self.rng.uniform(0.5, 1.5) * pause)
            index = self.rng.randrange(self.size)
            process = self.processes[index]
            what = self.rng.choice(["kill", "kill", "stop", "terminate"])
            self.done[what] += 1
            if what == "stop":  # as a partition: the connection stays, nothing moves
                process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(self.rng.uniform(0.2, 2.5))
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
            else:
                process.send_signal(signal.SIGKILL if what == "kill" else signal.SIGTERM)
                await process.wait()
                self.processes[index] = await self.start_one()

    async def end(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await asyncio.gather(*(process.wait() for process in self.processes))


async def storm(tasks: int, workers: int, pause: float, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DispatchSettings(manager_port=0, heartbeat=0.5, connect_timeout=2.0, max_attempts=50)
    delays: list[float] = []
    lost_at: dict[str, float] = {}
    somebody_since = 0.0
    lost, give, join = Manager._lost, Session.give, Pool.join

    def seen_lost(self: Manager, attempt: Attempt, started: bool) -> None:
        lost_at[attempt.task.id] = time.monotonic()
        lost(self, attempt, started)

    def seen_give(self: Session, attempt: Attempt) -> None:
        if attempt.task.id in lost_at:
            # While all workers are away there is nobody to give it to.
            possible = max(lost_at.pop(attempt.task.id), somebody_since)
            delays.append(time.monotonic() - possible)
        give(self, attempt)

    def seen_join(self: Pool, member: Member) -> None:
        nonlocal somebody_since
        if not self.members:
            somebody_since = time.monotonic()
        join(self, member)

    monkeypatch.setattr(Manager, "_lost", seen_lost)
    monkeypatch.setattr(Session, "give", seen_give)
    monkeypatch.setattr(Pool, "join", seen_join)
    async with running(Manager(settings=settings)) as manager:
        fleet = Fleet(manager, workers, random.Random(tasks))
        await fleet.start()
        outcomes: Counter[str] = Counter()
        slots = asyncio.Semaphore(4 * workers)

        async def one(n: int) -> None:
            async with slots:
                length = n % 20
                call = Call(
                    network="mine", chain_id="mine-1", type="Countdown", timeout=60.0,
                    payload=str(length).encode(), retry=Retry.IDEMPOTENT,
                )  # fmt: skip
                try:
                    got = await manager.call(call)
                except LeaseholdError as error:
                    outcomes[error.code] += 1
                else:
                    assert [int(r.payload) for r in got] == list(range(length, 0, -1))
                    outcomes["ok"] += 1

        try:
            async with asyncio.timeout(30):
                await manager.wait_for_worker("mine", "mine-1")
            tormentor = asyncio.create_task(fleet.torment(pause))
            await asyncio.gather(*(one(n) for n in range(tasks)))
            tormentor.cancel()
            await asyncio.gather(tormentor, return_exceptions=True)
            print(f"{outcomes=} {fleet.done=} redispatched={len(delays)}")
            assert outcomes.total() == tasks
            assert outcomes["ok"] >= tasks * 0.99  # all workers may be away at the same time
            assert fleet.done.total() >= 3
            assert len(delays) >= 1
            assert sorted(delays)[int(len(delays) * 0.99)] <= 1.0
            assert manager._open == set()
            for worker in manager.registry.workers.values():
                assert worker.session is None or worker.session.attempts == {}
            assert all(pool.queued == 0 for pool in manager._pools.values())
            assert len(manager.registry.workers) <= workers + fleet.done.total()
        finally:
            await fleet.end()


@pytest.mark.timeout(110)
async def test_a_small_storm(monkeypatch: pytest.MonkeyPatch) -> None:
    await storm(600, 3, 0.5, monkeypatch)


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_ten_thousand_tasks_on_eight_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    await storm(10_000, 8, 0.5, monkeypatch)
