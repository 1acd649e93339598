"""SIGKILL of the provider at random instants of the path from order to answer.

After each restart the deployment that was on its way completes, on the same lease, with one start;
the workload of an earlier deployment is never touched.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import tempfile
from collections import Counter
from pathlib import Path

import httpx
import pytest

from leasehold.app.demo.example import example
from leasehold.app.demo.flow import ACCOUNT, Demo
from leasehold.app.demo.registry import PORT
from leasehold.app.tenant import Tenant, first_answer
from leasehold.core.service import running
from leasehold.model import sdl
from leasehold.model.market import LeaseId

ONCE = {
    "order.created",
    "bid.created",
    "lease.won",
    "manifest.received",
    "deploy.image_pulled",
    "deploy.volume_ready",
    "deploy.started",
    "deploy.running",
}
"""Steps that may stand once in the story of a lease, however often the provider was killed."""


@pytest.mark.timeout(300)
async def test_five_kills_on_the_way_lose_nothing_and_do_nothing_twice():
    await storm(kills=5, seed=random.randrange(1 << 32))


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_a_hundred_kills():
    await storm(kills=100, seed=random.randrange(1 << 32))


async def storm(*, kills: int, seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="leasehold-crash-", dir="/var/tmp"))
    folder.chmod(0o711)
    demo = Demo(example(), folder=folder)
    async with running(demo):
        try:
            await demo.play()
            assert demo.result.answer.endswith("start number 1")
            process = await workload_process(demo)
            for round in range(1, kills + 1):
                await killed_on_the_way(demo, round, rng)
                assert (await ask(demo, "hello.localhost")).endswith("start number 1")
                assert await workload_process(demo) == process
            await stopped_and_started(demo, process)
        finally:
            await demo.clean()
    assert demo.result.left == []
    shutil.rmtree(folder, ignore_errors=True)


async def killed_on_the_way(demo: Demo, round: int, rng: random.Random) -> None:
    """Deploy, with the provider killed between the order and shortly after the first answer."""
    host = f"hello-{round}.localhost"
    text = demo.example.read_text().replace(f"localhost:{PORT}", demo.registry.host)
    loaded = sdl.load(text.replace("hello.localhost", host))
    assert demo._key is not None
    found = demo.running()
    assert found is not None
    instant = rng.uniform(0.0, 1.2)
    async with Tenant(demo._key, found.ledger) as tenant:
        deploying = asyncio.ensure_future(tenant.deploy(loaded))
        await asyncio.wait({deploying}, timeout=instant)
        os.kill(found.pid, signal.SIGKILL)
        await demo._process.wait()
        assert (await ask(demo, "hello.localhost")).endswith("start number 1")
        await demo.start_provider()
        (deployed,) = await deploying
        said = f"round {round}, killed after {instant:.3f} s"
        assert deployed.state == "healthy", f"{said}: {deployed}"
        _, answer = await first_answer(demo._must_run().ingress, host=host)
        assert answer.endswith("start number 1"), said
        lease = LeaseId.parse(deployed.lease)
        counted = Counter(step["type"] for step in deployed.steps)
        assert {t: n for t, n in counted.items() if t in ONCE and n != 1} == {}, said
        leases = [x async for x in tenant.ledger.list("leases", owner=lease.owner)]
        assert len(leases) == round + 1, said
        assert [x["state"] for x in leases].count("active") == 2, said
        bids = [x async for x in tenant.ledger.list("bids", owner=lease.owner, dseq=lease.dseq)]
        assert len(bids) == 1, said
        await tenant.ledger.close_deployment(lease.dseq)
        async for story in tenant.timeline(demo._must_run().gateway, lease):
            if any(step["type"] == "deploy.removed" for step in story["steps"]):
                break


async def stopped_and_started(demo: Demo, process: str) -> None:
    """A proper stop leaves the workload running too, and the next start takes it over."""
    await demo._stop_provider()
    assert (await ask(demo, "hello.localhost")).endswith("start number 1")
    await demo.start_provider()
    assert demo._key is not None
    assert demo._lease is not None
    async with Tenant(demo._key, demo._must_run().ledger) as tenant:
        async for story in tenant.timeline(demo._must_run().gateway, demo._lease):
            if story["state"] == "healthy":
                break
    assert (await ask(demo, "hello.localhost")).endswith("start number 1")
    assert await workload_process(demo) == process


async def ask(demo: Demo, host: str) -> str:
    async with httpx.AsyncClient(trust_env=False) as http:
        response = await http.get(demo.result.url, headers={"Host": host})
    assert response.status_code == 200, response.text
    return response.text.strip()


async def workload_process(demo: Demo) -> str:
    """The pid and start time of the first workload's server, from the control group's own list."""
    assert demo._lease is not None
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
            groups = (process / "cgroup").read_text()
            started = (process / "stat").read_text().rpartition(")")[2].split()[19]
        except OSError:
            continue
        if b"serve.sh" in words and demo.mark in groups:
            found.append((int(started), f"{process.name} {started}"))
    assert found, f"no process of {ACCOUNT}'s workload"
    return min(found)[1]
