"""The manager's own routes: who is there, whether it is ready, how much it logs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from leasehold.core import logs
from leasehold.core.service import running
from leasehold.dispatch.manager import Manager
from leasehold.dispatch.settings import DispatchSettings
from leasehold.dispatch.worker import Job, Reply, Worker


async def echo(job: Job) -> AsyncIterator[Reply]:
    yield Reply("Echo", job.payload, final=True)


async def test_ready_when_every_required_network_has_a_worker() -> None:
    settings = DispatchSettings(
        manager_port=0, worker_port=0, network="red", chain_id="red-1", required=("red", "blue/b-1")
    )
    async with running(Manager(settings=settings)) as manager:
        assert manager.http is not None
        async with httpx.AsyncClient(base_url=manager.http.url) as http:
            answer = await http.get("/readiness")
            assert (answer.status_code, answer.json()["got"]) == (503, "red, blue/b-1")
            assert (await http.get("/liveness")).json() == {}
            address = f"127.0.0.1:{manager.http.port}"
            red = DispatchSettings(
                worker_port=0, network="red", chain_id="red-1", managers=(address,)
            )
            async with running(Worker(settings=red, handlers={"Echo": echo})) as worker:
                await manager.wait_for_worker("red", "red-1")
                assert (await http.get("/readiness")).json()["got"] == "blue/b-1"
                listed = (await http.get("/get_workers")).json()
                assert (listed["red"]["all"], listed["red"]["active"]) == (1, 1)
                shown = listed["red"]["workers"][worker.id]
                assert (shown["node_id"], shown["type"], shown["state"]) == (worker.id, "red", 1)
                (connection,) = shown["connection"]
                assert (connection["version"], connection["type"]) == ("0.0.1", "grpc")
                assert connection["addresses"] == [{"ip": "127.0.0.1", "address": worker.address}]
                blue = DispatchSettings(
                    worker_port=0, network="blue", chain_id="b-1", managers=(address,)
                )
                async with running(Worker(settings=blue, handlers={"Echo": echo})):
                    await manager.wait_for_worker("blue", "b-1")
                    answer = await http.get("/readiness")
                    assert (answer.status_code, answer.json()) == (200, {"workers_online": 2})
            while not manager.unserved():
                await asyncio.sleep(0.01)
            assert (await http.get("/readiness")).status_code == 503


async def test_the_log_level_of_a_running_manager(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", json=True)
    log = logs.get_logger("leasehold.somewhere")
    async with running(Manager(settings=DispatchSettings(manager_port=0, token="t"))) as manager:
        async with httpx.AsyncClient(base_url=manager.url) as http:
            headers = {"authorization": "Bearer t"}
            assert (await http.post("/loglevel?level=debug")).status_code == 401
            assert (await http.get("/loglevel?level=debug", headers=headers)).status_code == 405
            bad = await http.post("/loglevel?level=loud", headers=headers)
            assert (bad.status_code, bad.json()["code"]) == (400, "bad_level")
            log.debug("not.seen")
            told = await http.post("/loglevel?level=debug", headers=headers)
            assert told.json() == {"level": "debug"}
            log.debug("is.seen")
            await http.post("/loglevel?level=panic", headers=headers)
            log.error("not.seen.either")
    logs.configure("info")
    events = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert "is.seen" in events
    assert not {"not.seen", "not.seen.either"} & set(events)
