"""Manager, worker and scheduler as processes, through the command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.integration.terminal import Terminal

from leasehold.app.roles import WorkerRole
from leasehold.app.settings import Settings
from leasehold.core.ops import OpsSettings
from leasehold.core.service import running
from leasehold.dispatch.settings import DispatchSettings
from leasehold.index.settings import IndexSettings
from leasehold.index.testing import FakeNode, FakeTx

LEASEHOLD = [sys.executable, "-m", "leasehold"]


def free_port() -> int:
    """Below the ports the system gives away itself: nobody takes it before its process starts."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Processes:
    def __init__(self, state: Path) -> None:
        self.env = {
            **os.environ, "LEASEHOLD_STATE": str(state), "LEASEHOLD_OPS__PORT": "0",
            "LEASEHOLD_LOG__LEVEL": "warning",
        }  # fmt: skip
        self.running: list[asyncio.subprocess.Process] = []

    async def start(self, *args: str, **env: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(*LEASEHOLD, *args, env={**self.env, **env})
        self.running.append(process)
        return process

    async def output(self, *args: str, code: int = 0) -> Any:
        process = await asyncio.create_subprocess_exec(
            *LEASEHOLD, *args, "--json", env=self.env, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == code, out
        return json.loads(out.splitlines()[0])

    async def end(self) -> None:
        for process in self.running:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        for process in self.running:
            try:
                await asyncio.wait_for(process.wait(), 15)
            except TimeoutError:
                process.kill()


async def until(probe: Callable[[], Any], seconds: float = 30.0) -> Any:
    async with asyncio.timeout(seconds):
        while True:
            try:
                found = await probe()
                if found:
                    return found
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.05)


@pytest.mark.timeout(110)
async def test_manager_worker_and_scheduler(tmp_path: Path) -> None:
    port, schedule_port = free_port(), free_port()
    manager, schedule = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{schedule_port}"
    processes = Processes(tmp_path)
    async with running(FakeNode()) as node, httpx.AsyncClient() as client:
        for i in range(30):
            node.make([FakeTx(f"tx {i}".encode(), [("transfer", [("sender", "alice")])])])
        try:
            await processes.start("manager", ADDRESS=f"127.0.0.1:{port}")  # the original's variable
            worker = (
                "worker", "--manager", f"127.0.0.1:{port}", "--network", "cosmos",
                "--chain-id", node.chain_id, "--rpc", node.url, "--port", "0",
            )  # fmt: skip
            await processes.start(*worker)
            await processes.start(
                "scheduler", "--manager", f"127.0.0.1:{port}", "--port", str(schedule_port)
            )

            async def online() -> bool:
                groups = (await client.get(f"{manager}/get_workers")).json()
                return bool(groups.get("cosmos", {}).get("active"))

            await until(online)
            await until(lambda: client.get(f"{schedule}/health"))
            added = await processes.output(
                "schedule", "add", "cosmos", node.chain_id, "--every", "200ms", "--enable",
                "--url", schedule,
            )  # fmt: skip

            async def caught_up() -> bool:
                chains = (await client.get(f"{manager}/index/status")).json()
                return bool(chains) and chains[0]["covered"] == [[1, node.head]]

            await until(caught_up)
            for _ in range(5):
                node.make()
            await until(caught_up)
            where = ("--manager", manager)
            found = await processes.output("index", "search", "--sender", "alice", *where)
            assert len(found["transactions"]) == 20
            assert found["covered"] == f"{node.chain_id}:1-35"
            shown = await processes.output("index", "status", *where)
            assert shown["chains"][0]["heights"] == 35
            gaps = await processes.output(
                "index", "missing", "--chain-id", node.chain_id, "--from", "1", "--to", "40", *where
            )
            assert gaps["missing_blocks"] == [[36, 40]]
            listed = await processes.output("schedule", "ls", "--url", schedule)
            assert listed[0]["state"]["last_height"] == 35
            runs = await processes.output("schedule", "runs", added["id"], "--url", schedule)
            assert runs[0]["error"] == ""
            stopped = await processes.output("schedule", "disable", "default", "--url", schedule)
            assert stopped["enabled"] is False
            refused = await processes.output(
                "schedule", "add", "cosmos", "x", "--kind", "nope", "--url", schedule, code=1
            )
            assert refused["error"]["path"] == "kind"
        finally:
            await processes.end()
        assert [p.returncode for p in processes.running] == [0, 0, 0]


@pytest.mark.timeout(110)
async def test_fetch_and_sync_need_nothing_running(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    async with running(FakeNode(version="0.34.9")) as node:
        for i in range(25):
            node.make([FakeTx(f"tx {i}".encode())], [("closed", [("id", "7")])])
        base = ("--network", "cosmos", "--rpc", node.url)
        got = await processes.output("index", "fetch", *base, "--from", "3", "--to", "5")
        assert [block["height"] for block in got["blocks"]] == [3, 4, 5]
        assert got["blocks"][0]["events"][0]["attributes"] == [{"key": "id", "value": "7"}]
        assert [tx["height"] for tx in got["transactions"]] == [3, 4, 5]
        node.broken.add(20)
        part = await processes.output("index", "sync", *base, "--from", "1", "--to", "25", code=6)
        assert part["missing"] == [[20, 20]]
        node.broken.clear()
        rest = await processes.output("index", "sync", *base, "--from", "1", "--to", "25")
        assert (rest["stored"], rest.get("missing", [])) == (1, [])


async def test_a_fetch_into_a_file_shows_how_far_it_is() -> None:
    """On the terminal, while standard output gets nothing but the answer."""
    async with running(FakeNode()) as node:
        for _ in range(20):
            node.make()
        node.held[11] = asyncio.Event()
        terminal = Terminal()
        words = ("index", "fetch", "--rpc", node.url, "--from", "1", "--to", "20", "--json")
        fetching = await terminal.run(*words, piped=True)
        await terminal.until("10 of 20 heights")
        assert "50%" in terminal.drawn
        node.held[11].set()
        out, _ = await fetching.communicate()
        assert [block["height"] for block in json.loads(out)["blocks"]] == list(range(1, 21))


async def test_a_worker_announces_the_chain_it_reads() -> None:
    settings = Settings(
        ops=OpsSettings(port=0),
        index=IndexSettings(network="cosmos", chain_id="mine-1"),
        dispatch=DispatchSettings(worker_port=0, managers=()),
    )
    async with running(WorkerRole(settings)) as role:
        announced = role.worker.settings
        assert (announced.network, announced.chain_id) == ("cosmos", "mine-1")
