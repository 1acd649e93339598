"""The operator's verbs over HTTP, against a provider that is a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from conftest_deploy import eventually

from leasehold.app.demo.image import build
from leasehold.app.running import Running
from leasehold.app.selftest import SelfTest, registry
from leasehold.app.tenant import Tenant, first_answer
from leasehold.core.service import running
from leasehold.core.web import HttpServer
from leasehold.market.accounts import Key
from leasehold.model import sdl

SETTINGS = """
[market]
port = 0
[dispatch]
manager_port = 0
worker_port = 0
[schedule]
port = 0
[gateway]
port = {gateway}
[ops]
port = 0
[deploy]
cgroup_parent = "/{mark}"
ingress_address = "127.0.0.1"
ingress_ports = [0]
stop_grace = 0.5
offer_cpu = 0.5
"""


@dataclass
class Machine:
    state: Path

    async def cli(self, *words: str) -> tuple[int, Any]:
        """``(exit status, what it printed)`` of ``leasehold WORDS --json``."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "leasehold", *words, "--state", str(self.state), "--json",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, json.loads(out) if out.strip() else err.decode()

    def running(self) -> Running:
        return msgspec.json.decode((self.state / "run.json").read_bytes(), type=Running)

    async def operator(self, method: str, path: str, body: Any = None) -> Any:
        token = (self.state / "operator.token").read_text().strip()
        async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
            answer = await http.request(
                method,
                self.running().gateway + path,
                json=body,
                headers={"Authorization": f"Bearer {token}"},
            )
        assert answer.is_success, answer.text
        return answer.json()


@contextlib.asynccontextmanager
async def provider(folder: Path) -> AsyncIterator[Machine]:
    state = folder / "state"
    state.mkdir()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        gateway = sock.getsockname()[1]
    text = SETTINGS.format(mark=f"leasehold-test-{secrets.token_hex(4)}", gateway=gateway)
    (state / "leasehold.toml").write_text(text)
    machine = Machine(state)
    process = None
    with open(folder / "log", "wb") as log:
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "leasehold", "up", "--state", str(state),
                stdout=log, stderr=log,
            )  # fmt: skip
            await eventually(lambda: (state / "run.json").exists(), 60)
            yield machine
        finally:
            if (state / "run.json").exists():
                await machine.operator("POST", "/v1/node/clear")
            if process is not None:
                process.send_signal(signal.SIGTERM)
                await process.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
async def test_an_operator_limits_pauses_tests_and_drains_a_provider(tmp_path: Path) -> None:
    async with provider(tmp_path) as machine:
        status, found = await machine.cli("provider", "limits")
        assert status == 0
        (node,) = found["nodes"]
        assert node["offered"]["cpu"] == len(os.sched_getaffinity(0)) * 500, "offer_cpu is a half"
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.post(f"{machine.running().gateway}/v1/provider/pause", json={})
        assert answer.status_code == 401

        status, found = await machine.cli("provider", "pause", "--reason", "back on Monday")
        assert (status, found["unavailable"]) == (0, "back on Monday")
        status, found = await machine.cli("provider", "resume")
        assert (status, found["unavailable"]) == (0, "")

        status, report = await machine.cli("provider", "selftest")
        assert status == 0, report
        assert report["ok"]
        assert [step["name"] for step in report["steps"]] == [
            "image served",
            "account funded",
            "order taken",
            "bid made",
            "lease made",
            "manifest accepted",
            "healthy",
            "answers through ingress",
            "status shows it",
            "updated, no request lost",
            "closed and removed",
        ]
        inventory = await machine.operator("GET", "/v1/inventory")
        assert (inventory["pending"], inventory["leased"]) == ([], [])

        # A tenant's lease, taken away by draining: closed on the market, gone from the machine.
        lease, tenant = await _tenant(machine, tmp_path)
        async with tenant:
            (listed,) = await machine.operator("GET", "/v1/workloads")
            assert (listed["lease"], listed["healthy"]) == (lease, True)
            status, found = await machine.cli("provider", "drain", "--yes", "--reason", "moving")
            assert (status, found) == (0, {"closed": [lease]})

            async def gone() -> bool:
                return await machine.operator("GET", "/v1/workloads") == []

            await eventually(gone, 30)
            record = await tenant.ledger.get("leases", lease)
            assert record["state"] == "closed"
        inventory = await machine.operator("GET", "/v1/inventory")
        assert inventory["unavailable"] == "moving"
        await eventually(lambda: _free(machine), 10)


async def _free(machine: Machine) -> bool:
    found = await machine.operator("GET", "/v1/inventory")
    return not found["leased"] and not found["pending"]


async def _tenant(machine: Machine, folder: Path) -> tuple[str, Tenant]:
    """A lease that answers, and its tenant."""
    found, key = machine.running(), Key.generate()
    await machine.operator("POST", "/v1/market/gifts", {"to": key.address, "amount": "50000000"})
    digest = build(folder / "image")
    server = HttpServer(registry(folder / "image", digest))
    async with running(server):
        test = SelfTest(found, machine.operator, image=f"localhost:{server.port}/t/hello:1")
        tenant = Tenant(key, found.ledger)
        (deployed,) = await tenant.deploy(sdl.load(test.sdl_text("hello")))
        await first_answer(found.ingress, host=test.host)
    return deployed.lease, tenant
