"""Schedulers against a manager's real websocket, sharing a database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.dispatch.manager import Manager
from leasehold.dispatch.settings import DispatchSettings
from leasehold.dispatch.testing import MemoryNetwork
from leasehold.dispatch.worker import Worker
from leasehold.schedule.scheduler import Scheduler
from leasehold.schedule.settings import ScheduleSettings
from leasehold.schedule.store import NewTask, ScheduleStore

QUICK: dict[str, Any] = {"port": 0, "poll": 0.02, "lease": 0.6, "discovery": 0.05}


class Target:
    """A manager whose ``last_data`` and ``sync_range`` do what a test says."""

    def __init__(self, manager: Manager) -> None:
        self.calls: list[dict[str, Any]] = []
        self.under_way = 0
        self.at_once = 0
        self.answer: Callable[[dict[str, Any]], dict[str, Any]] = lambda state: {
            "last_height": state.get("last_height", 0) + 10
        }
        self.hold = asyncio.Event()
        self.hold.set()
        self.cancelled = 0
        manager.method("last_data", self._call)
        manager.method("sync_range", self._call)

    async def _call(self, params: list[Any]) -> Any:
        self.calls.append(params[0])
        self.under_way += 1
        self.at_once = max(self.at_once, self.under_way)
        try:
            await self.hold.wait()
            return self.answer(params[0])
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1


@contextlib.asynccontextmanager
async def target() -> AsyncIterator[tuple[Target, Manager]]:
    net = MemoryNetwork()
    base: dict[str, Any] = {"manager_port": 0, "network": "n", "chain_id": "c", "managers": ()}
    settings = DispatchSettings(**base)
    manager = Manager(settings=settings, dialers=[net.dialer()])
    made = Target(manager)
    async with (
        running(manager),
        running(Worker(settings=settings, handlers={}, listener=net.listener("w"))) as worker,
    ):
        net.announce(manager, worker)
        await manager.wait_for_worker("n", "c")
        yield made, manager


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'schedule.db'}"
    made: str = request.getfixturevalue("postgres_url")
    return made


def task(**changed: Any) -> NewTask:
    return NewTask(**{"network": "n", "chain_id": "c", "interval": "100ms", **changed})


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def settings_for(manager: Manager, **changed: Any) -> ScheduleSettings:
    assert manager.http is not None
    return ScheduleSettings(**{**QUICK, "managers": (f"127.0.0.1:{manager.http.port}",), **changed})


async def test_a_task_runs_state_goes_on_and_history_is_pruned(url: str) -> None:
    async with target() as (seen, manager), running(ScheduleStore(url, keep_runs=5)) as store:
        added = await store.add(task(), enabled=True)
        async with running(Scheduler(store, settings=settings_for(manager), http=False)):
            await until(lambda: len(seen.calls) > 8)
        heights = [call["last_height"] for call in seen.calls if "last_height" in call]
        assert heights == [10 * n for n in range(1, len(heights) + 1)]  # nothing lost or repeated
        runs = await store.history(added.id)
        assert len(runs) == 5
        assert runs[0].height > runs[-1].height
        assert (await store.history(added.id, limit=2, offset=1))[0] == runs[1]


async def test_each_due_task_runs_once_and_is_taken_over_within_a_lease(url: str) -> None:
    async with (
        target() as (seen, manager),
        running(ScheduleStore(url)) as store,
        running(ScheduleStore(url)) as other,
    ):
        added = await store.add(task(), enabled=True)
        settings = settings_for(manager)
        # An instance that died after its claim: nobody renews it.
        dead = await store.claim(added.id, "dead", settings.lease)
        assert dead is not None
        claimed_at = asyncio.get_running_loop().time()
        async with (
            running(Scheduler(store, settings=settings, http=False)),
            running(Scheduler(other, settings=settings, http=False)),
        ):
            await until(lambda: seen.calls)
            waited = asyncio.get_running_loop().time() - claimed_at
            assert settings.lease * 0.9 <= waited <= settings.lease * 2
            await until(lambda: len(seen.calls) > 6)
            assert seen.at_once == 1
        heights = [call.get("last_height", 0) for call in seen.calls]
        assert heights == sorted(set(heights))
        late = await store.finish(
            dead, state=dead.state, error="", failures=0, due_at=0.0, seconds=1.0
        )
        assert not late  # the epoch moved on: the dead one's result is refused


async def test_a_range_is_worked_through_and_then_never_again(url: str) -> None:
    async with target() as (seen, manager), running(ScheduleStore(url)) as store:
        wanted = task(kind="syncrange", config={"height_from": "5", "height_to": 30})
        added = await store.add(wanted, enabled=True)
        seen.answer = lambda state: {
            "last_height": min(state["last_height"] + 10, state["final_height"])
        }
        async with running(Scheduler(store, settings=settings_for(manager), http=False)):
            await until(lambda: len(seen.calls) == 3)
            await asyncio.sleep(0.4)
            assert [call["last_height"] for call in seen.calls] == [4, 14, 24]
        finished = await store.get(added.id)
        assert (finished.status, finished.enabled) == ("finished", False)
        with pytest.raises(LeaseholdError) as refused:
            await store.enable(added.id)
        assert refused.value.code == "task_finished"


async def test_disable_cancels_and_enable_does_not_run_twice(tmp_path: Path) -> None:
    path = f"sqlite+aiosqlite:///{tmp_path / 's.db'}"
    async with target() as (seen, manager), running(ScheduleStore(path)) as store:
        seen.hold.clear()
        added = await store.add(task(), enabled=True)
        other = Scheduler(store, settings=settings_for(manager))
        mine = Scheduler(store, settings=settings_for(manager, auth_user="u", auth_password="p"))
        async with running(other), running(mine):
            assert mine.http is not None
            await until(lambda: seen.under_way == 1)
            async with httpx.AsyncClient(base_url=mine.http.url) as client:
                refused = await client.post(f"/scheduler/core/disable/{added.id}")
                assert refused.status_code == 401
                assert (await client.get("/ui")).status_code == 401
                client.auth = httpx.BasicAuth("u", "p")
                assert (await client.get("/ui")).status_code == 200
                # Whichever instance runs it: at once there, at the next renewal elsewhere.
                await client.post(f"/scheduler/core/disable/{added.id}")
                await until(lambda: not other._calls and not mine._calls)
                calls = len(seen.calls)
                seen.hold.set()
                await asyncio.sleep(0.3)
                assert len(seen.calls) == calls
                for _ in range(3):
                    await client.post(f"/scheduler/core/enable/{added.id}")
                    await client.post(f"/scheduler/core/disable/{added.id}")
                await client.post(f"/scheduler/core/enable/{added.id}")
                seen.at_once = seen.under_way
                await until(lambda: len(seen.calls) > calls + 4)
                assert seen.at_once <= 1
                listed = (await client.get("/scheduler/core/list")).json()
                assert listed[0]["enabled"] is True
                runs = await client.post(
                    "/scheduler/runner/lastdata/listRunning",
                    json={"task_id": added.task_id, "limit": 2, "offset": 1},
                )
                assert len(runs.json()) == 2
                bad = await client.post(
                    "/scheduler/core/addTask",
                    json={"network": "n", "chain_id": "c", "interval": "1s", "kind": "nope"},
                )
                assert (bad.status_code, bad.json()["path"]) == (422, "kind")


async def test_failures_keep_the_height_and_back_off(tmp_path: Path) -> None:
    path = f"sqlite+aiosqlite:///{tmp_path / 's.db'}"
    async with target() as (seen, manager), running(ScheduleStore(path)) as store:
        added = await store.add(task(), enabled=True)
        answers = iter([{"last_height": 10}, {"processing": True}, {"error": "YnJva2Vu"}])
        seen.answer = lambda state: next(answers, {"last_height": 20})
        async with running(Scheduler(store, settings=settings_for(manager), http=False)):
            await until(lambda: len(seen.calls) >= 5, 20)
        assert [call.get("last_height", 0) for call in seen.calls[:4]] == [0, 10, 10, 10]
        runs = (await store.history(added.id))[::-1]
        assert [run.error for run in runs[:4]] == ["", "", "broken", ""]
        assert [run.retry for run in runs[:4]] == [0, 1, 2, 0]
