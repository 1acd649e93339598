"""W1: one dispatcher blocks on a full limiter, and those who hold slots wait for those behind.

The model below is the original's dispatcher: one loop takes ready tasks in order and waits for the
slot of each. Five same-server moves pin all ten repo slots (release waits for its workflow,
acquire waits for release); one more ready repo in front of the workflows and nothing moves again.
Ours holds no slot while waiting and has a queue for each limit: with ``Context.outside`` made a
no-op the second test stalls like the model and finds repos that never arrived.
"""

from __future__ import annotations

import asyncio

from leasehold.core.clock import VirtualClock
from leasehold.core.service import running
from leasehold.events.memory import MemoryLog
from leasehold.storage.testing import PretendedHost


class OriginalDispatcher:
    """Ready list, one loop, a slot held for the whole run."""

    def __init__(self) -> None:
        self.slots = {"general": asyncio.Semaphore(20), "repo": asyncio.Semaphore(10)}
        self.ready: asyncio.Queue[tuple[str, object]] = asyncio.Queue()
        self.finished = 0

    async def run(self, tasks: set[asyncio.Task[None]]) -> None:
        while True:
            kind, activity = await self.ready.get()
            await self.slots[kind].acquire()
            tasks.add(asyncio.create_task(self._one(kind, activity)))

    async def _one(self, kind: str, activity: object) -> None:
        await activity()  # type: ignore[operator]
        self.slots[kind].release()
        self.finished += 1

    def move(self) -> None:
        """Release waits for its workflow activity, acquire for release."""
        released = asyncio.Event()

        async def workflow() -> None:
            await asyncio.sleep(0.01)
            released.set()

        async def release() -> None:
            await asyncio.sleep(0.01)
            self.ready.put_nowait(("general", workflow))
            await released.wait()

        async def acquire() -> None:
            await released.wait()

        self.ready.put_nowait(("repo", release))
        self.ready.put_nowait(("repo", acquire))

    async def settle(self, moves: int, others: int) -> int:
        async def idle() -> None:
            await asyncio.sleep(0.01)

        for _ in range(moves):
            self.move()
        for _ in range(others):
            self.ready.put_nowait(("repo", idle))
        tasks: set[asyncio.Task[None]] = set()
        tasks.add(asyncio.create_task(self.run(tasks)))
        await asyncio.sleep(1000)
        for task in tasks:
            task.cancel()
        return self.finished


def stalled(moves: int, others: int) -> bool:
    async def main() -> int:
        return await OriginalDispatcher().settle(moves, others)

    return VirtualClock().run(main) < 3 * moves + others


def test_the_original_stalls_at_five_moves_and_one_more_repo() -> None:
    assert not stalled(4, 1)
    assert not stalled(5, 0)
    assert stalled(5, 1)


def test_a_thousand_same_server_moves_complete_with_ten_slots() -> None:
    clock = VirtualClock()

    async def main() -> None:
        host = PretendedHost(MemoryLog(clock), clock)
        assert host.engine.table.lanes["repo"].slots == 10
        async with running(host.engine):
            repos = await host.make(1000)
            await clock.sleep(60)
            assert len(host.files.enabled) == 1000
            for n, repo in enumerate(repos):
                await host.repos.begin_move(repo, f"moved/{n}", "local", timeout=3600)
            await clock.sleep(600)
            for n, repo in enumerate(repos):
                state = await host.repos.repo(repo)
                assert (state.path, state.busy) == (f"moved/{n}", "")
                assert host.files.enabled[repo].path == f"moved/{n}"
            assert host.engine.table.lanes["repo"].free == 10

    clock.run(main)
