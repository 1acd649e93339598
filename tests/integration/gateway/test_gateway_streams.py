"""Websockets over real HTTP: logs, events and a shell, against a runtime in memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest
import websockets

from leasehold.core.clock import SystemClock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.service import running
from leasehold.gateway.ports import LogLine
from leasehold.gateway.server import Gateway
from leasehold.gateway.settings import GatewaySettings
from leasehold.manifest import testing
from leasehold.market.accounts import Key, sign_token
from leasehold.model.market import LeaseId

TENANT = Key.generate()


class Keys:
    async def public_key(self, address: str) -> dict[str, str] | None:
        return TENANT.public.jwk() if address == TENANT.address else None


class Echo:
    """A command that repeats its input and ends with code 7 when the input does."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()
        self.size: tuple[int, int] | None = None
        self.killed = False

    async def write(self, data: bytes) -> None:
        self.queue.put_nowait((1, data))
        self.queue.put_nowait((2, b"!"))

    async def close_input(self) -> None:
        self.queue.put_nowait(None)

    async def resize(self, width: int, height: int) -> None:
        self.size = (width, height)

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        while (item := await self.queue.get()) is not None:
            yield item

    async def wait(self) -> int:
        return 7

    async def kill(self) -> None:
        self.killed = True


class Runtime:
    """Two services with a log line each; ``down`` when it does not answer."""

    def __init__(self) -> None:
        self.down = False
        self.asked: list[Any] = []
        self.command = Echo()
        self.followers = 0

    async def status(self, lease: LeaseId) -> dict[str, Any]:
        return {"services": {}, "forwarded_ports": {}, "ips": {}}

    async def logs(
        self, lease: LeaseId, services: Sequence[str], *, follow: bool, tail: int
    ) -> AsyncIterator[LogLine]:
        if self.down:
            raise LeaseholdError("runtime", "not reachable", kind=Kind.UNAVAILABLE)
        self.asked.append((list(services), follow, tail))
        for name in services or ["web", "db"]:
            yield LogLine(name, f"{name}-0", f"hello from {name}")
        if follow:
            self.followers += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.followers -= 1

    async def exec(self, lease: LeaseId, service: str, command: Sequence[str], **how: Any) -> Echo:
        if service == "none":
            raise LeaseholdError("service_not_found", "no such service", kind=Kind.NOT_FOUND)
        self.asked.append((service, list(command), how))
        return self.command


@contextlib.asynccontextmanager
async def provider() -> AsyncIterator[tuple[Any, Runtime, str]]:
    clock = SystemClock()
    w = testing.world(clock)
    runtime = Runtime()
    async with w.up() as service:
        gateway = Gateway(
            GatewaySettings(port=0), clock=clock, manifest=service, keys=Keys(), workloads=runtime
        )
        async with running(gateway):
            body = await w.deploy(testing.simple(), owner=TENANT.address)
            lease = await w.win(owner=TENANT.address)
            await service.submit(TENANT.address, 1, body)
            w.lease = lease
            yield w, runtime, gateway.url.replace("http", "ws")


def connect(url: str, **claims: Any) -> Any:
    token = sign_token(TENANT, time.time(), **claims)
    return websockets.connect(url, additional_headers={"Authorization": f"Bearer {token}"})


async def closed(url: str, **claims: Any) -> int:
    async with connect(url, **claims) as socket:
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await socket.recv()
        return int(socket.close_code)


async def refused(url: str, **claims: Any) -> int:
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with connect(url, **claims):
            pass
    return int(caught.value.response.status_code)


async def test_logs() -> None:
    async with provider() as (_w, runtime, url):
        async with connect(f"{url}/lease/1/1/1/logs?tail=5") as socket:
            lines = [json.loads(m) async for m in socket]
        assert lines == [
            {"name": "web-0", "message": "hello from web"},
            {"name": "db-0", "message": "hello from db"},
        ]
        assert await closed(f"{url}/lease/1/1/1/logs?service=web,db") == 1000
        assert await closed(f"{url}/lease/1/1/1/logs?services=db") == 1000
        assert runtime.asked == [([], False, 5), (["web", "db"], False, -1), (["db"], False, -1)]
        async with connect(f"{url}/lease/1/1/1/logs?follow=true") as socket:
            await socket.recv()
            await socket.recv()
            assert runtime.followers == 1
        for _ in range(200):
            if runtime.followers == 0:
                break
            await asyncio.sleep(0.01)
        assert runtime.followers == 0, "nobody reads for a client that left"


async def test_refused_before_it_opens_or_closed_with_a_code() -> None:
    async with provider() as (_w, runtime, url):
        logs = f"{url}/lease/1/1/1/logs"
        assert await refused(f"{logs}?service=web,") == 400
        assert await refused(f"{logs}?tail=-2") == 400
        assert await refused(f"{logs}?follow=maybe") == 400
        assert await refused(logs, access="scoped", scope=["status"]) == 401
        with pytest.raises(websockets.InvalidStatus) as caught:
            async with websockets.connect(logs):
                pass
        assert caught.value.response.status_code == 401
        assert await closed(f"{url}/lease/9/1/1/logs") == 4001
        runtime.down = True
        assert await closed(logs) == 4002


async def test_services_of_a_token_are_enforced() -> None:
    async with provider() as (w, runtime, url):
        entry = {"dseq": 1, "scope": ["logs", "shell"], "services": ["web"]}
        only = {
            "access": "granular",
            "permissions": [{"provider": w.provider, "access": "granular", "deployments": [entry]}],
        }
        assert await refused(f"{url}/lease/1/1/1/logs?service=db", **only) == 401
        assert await closed(f"{url}/lease/1/1/1/logs", **only) == 1000
        assert runtime.asked == [(["web"], False, -1)]
        shell = f"{url}/lease/1/1/1/shell?cmd0=sh&tty=0&stdin=1&podIndex=0"
        assert await refused(f"{shell}&service=db", **only) == 401


async def test_events_open_before_the_manifest_and_end_with_the_lease() -> None:
    async with provider() as (w, _runtime, url):
        async with connect(f"{url}/lease/1/1/1/kubeevents") as socket:
            first = json.loads(await socket.recv())
            assert (first["reason"], first["type"]) == ("LeaseWon", "Normal")
            assert first["object"]["kind"] == "Lease"
            await w.deployed(w.lease, "x", failed="image_not_found")
            await w.close_lease(w.lease)
            frames = [json.loads(m) async for m in socket]
            assert [f["reason"] for f in frames][-2:] == ["DeployFailed", "LeaseClosed"]
            assert frames[-2]["type"] == "Warning"
            assert socket.close_code == 1000
        assert await closed(f"{url}/lease/5/1/1/kubeevents") == 4001


async def test_shell() -> None:
    async with provider() as (_w, runtime, url):
        shell = f"{url}/lease/1/1/1/shell?cmd0=sh&cmd1=-c&cmd2=cat&tty=1&stdin=1&podIndex=0"
        async with connect(f"{shell}&service=web") as socket:
            await socket.send(bytes([105]) + b"\x00\x50\x00\x18")
            await socket.send(bytes([104]) + b"hi")
            assert await socket.recv() == bytes([100]) + b"hi"
            assert await socket.recv() == bytes([101]) + b"!"
            await socket.send(bytes([104]))
            assert await socket.recv() == bytes([102]) + b'{"exit_code":7}'
            with pytest.raises(websockets.ConnectionClosedOK):
                await socket.recv()
        assert runtime.command.size == (80, 24) and runtime.command.killed
        assert runtime.asked == [
            ("web", ["sh", "-c", "cat"], {"replica": 0, "tty": True, "stdin": True})
        ]
        assert await closed(f"{shell}&service=none") == 4001
        for part in ("cmd0=sh&", "tty=1&", "stdin=1&", "&podIndex=0"):
            assert await refused(f"{shell}&service=web".replace(part, "")) == 400


async def test_hostnames_move_between_leases_of_one_owner() -> None:
    async with provider() as (w, _runtime, url):
        second = testing.simple().replace("westcoast", "eastcoast")
        body = await w.deploy(second, dseq=2, owner=TENANT.address)
        lease = await w.win(dseq=2, owner=TENANT.address)
        accepted = await w.service.submit(TENANT.address, 2, body)
        assert accepted.withheld == ["ahostname.com"]
        token = sign_token(TENANT, time.time())
        http_url = url.replace("ws", "http", 1)
        async with httpx.AsyncClient(
            base_url=http_url, headers={"Authorization": f"Bearer {token}"}
        ) as http:

            async def move(**body: Any) -> httpx.Response:
                return await http.post("/hostname/migrate", json=body)

            there = {"destination_dseq": 2, "destination_gseq": 1}
            assert (await move(hostnames_to_migrate=[], **there)).status_code == 400
            assert (await move(hostnames_to_migrate=["x.com"], **there)).status_code == 400
            assert (await move(hostnames_to_migrate=5)).status_code == 422
            gone = {"destination_dseq": 7, "destination_gseq": 1}
            assert (await move(hostnames_to_migrate=["ahostname.com"], **gone)).status_code == 400
            moved = await move(hostnames_to_migrate=["ahostname.com"], **there)
            assert moved.json() == {"transferred": ["ahostname.com"]}
            told = await w.events("lease", lease, "lease.hostnames")
            assert [e.payload.hosts for e in told] == [["ahostname.com"]]
            lost = await w.events("lease", w.lease, "lease.hostnames")
            assert [e.payload.hosts for e in lost] == [[]]
            scoped = sign_token(TENANT, time.time(), access="scoped", scope=["status"])
            denied = await http.post(
                "/hostname/migrate",
                json={"hostnames_to_migrate": ["ahostname.com"], **there},
                headers={"Authorization": f"Bearer {scoped}"},
            )
            assert denied.status_code == 401
            none = await http.post(
                "/endpoint/migrate", json={"endpoints_to_migrate": ["ip"], **there}
            )
            assert none.status_code == 400
