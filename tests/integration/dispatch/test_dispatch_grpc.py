"""Managers and workers over real gRPC on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.dispatch.manager import Manager
from leasehold.dispatch.settings import DispatchSettings
from leasehold.dispatch.task import Call
from leasehold.dispatch.worker import Job, Reply, Worker

BASE: dict[str, Any] = {"manager_port": 0, "worker_port": 0, "network": "n", "chain_id": "c"}


async def echo(job: Job) -> AsyncIterator[Reply]:
    yield Reply("Echo", job.payload, final=True)


async def count(job: Job) -> AsyncIterator[Reply]:
    for i in range(int(job.payload)):
        yield Reply("Number", str(i).encode())


def call(type_: str, payload: bytes = b"", **more: Any) -> Call:
    return Call(network="n", chain_id="c", type=type_, payload=payload, **more)


@pytest.mark.parametrize("attached", [False, True])
async def test_a_worker_is_found_and_works(attached: bool) -> None:
    settings = DispatchSettings(**BASE, attach_port=0 if attached else -1)
    async with running(Manager(settings=settings)) as manager:
        assert manager.http is not None
        target = manager.attach_address if attached else f"127.0.0.1:{manager.http.port}"
        mine = DispatchSettings(**BASE, managers=(target,), attach=attached)
        worker = Worker(settings=mine, handlers={"Echo": echo, "Count": count})
        async with running(worker):
            await asyncio.wait_for(manager.wait_for_worker("n", "c"), 5)
            (only,) = await manager.call(call("Echo", b"hello"))
            assert (only.payload, only.final, only.order) == (b"hello", True, 0)
            numbers = await manager.call(call("Count", b"1000"))
            assert [int(r.payload) for r in numbers] == list(range(1000))
            with pytest.raises(LeaseholdError, match="unknown task type"):
                await manager.call(call("Nope"))
            async with httpx.AsyncClient(base_url=manager.url) as client:
                listed = (await client.get("/get_workers")).json()
            assert listed["n"]["active"] == listed["n"]["all"] == 1
            shown = listed["n"]["workers"][worker.id]
            assert shown["state"] == 1
            assert shown["tasks"]["ResponseMap"] == {}
        await asyncio.sleep(0)
        with pytest.raises(LeaseholdError) as refused:
            await manager.call(call("Echo", timeout=2.0))
        assert refused.value.code in ("no_workers", "task_timeout")


async def test_a_wrong_token_is_refused_on_ping_and_stream() -> None:
    guarded = DispatchSettings(**BASE, token="right")
    async with running(Manager(settings=guarded)) as manager:
        assert manager.http is not None
        ping = {
            "id": "w", "network": "n", "chain_id": "c",
            "connectivity": {"version": "0.0.1", "type": "grpc", "address": "127.0.0.1:9"},
        }  # fmt: skip
        async with httpx.AsyncClient(base_url=manager.url) as client:
            assert (await client.post("/client_ping", json=ping)).status_code == 401
            headers = {"authorization": "Bearer right"}
            assert (await client.post("/client_ping", json=ping, headers=headers)).is_success
        theirs = DispatchSettings(
            **BASE, token="other", managers=(f"127.0.0.1:{manager.http.port}",)
        )
        async with running(Worker(settings=theirs, handlers={"Echo": echo})) as worker:
            ping["connectivity"]["address"] = worker.address  # type: ignore[index]
            ping["id"] = worker.id
            async with httpx.AsyncClient(base_url=manager.url, headers=headers) as client:
                await client.post("/client_ping", json=ping)
            while manager.registry.get(worker.id).state != 2:
                await asyncio.sleep(0.01)
            assert "join token" in manager.registry.get(worker.id).problem
