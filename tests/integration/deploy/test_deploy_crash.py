"""SIGKILL of the provider, of a container's runtime and of the proxy, while requests come in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from conftest_deploy import LEASE, Machine, Provider, eventually, group, http_get, service
from test_deploy_lifecycle import load

from leasehold.core.clock import SystemClock
from leasehold.core.service import running
from leasehold.deploy.keeper.client import kill_keeper
from leasehold.events.event import Entity, Event, NewEvent
from leasehold.events.log import ANY
from leasehold.events.sqlite import SqliteLog
from leasehold.model.events.lease import ManifestReceived
from leasehold.model.market import LeaseId

ENTITY = Entity("lease", str(LEASE))


@contextlib.asynccontextmanager
async def provider_process(
    machine: Machine,
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A provider that is killed at the end, not stopped."""
    script = Path(__file__).with_name("provider_process.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), str(machine.folder), str(machine.images.layer),
        machine.settings.cgroup_parent, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            port = int(await process.stdout.readline())
        yield process, port
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _put(machine: Machine, text: str, hash: str) -> None:
    """Append a manifest while no provider has the log open."""
    script = f"mkdir -p /w; echo {text} > /w/index.html; exec busybox httpd -f -p 80 -h /w"
    fact = ManifestReceived(id=LEASE, hash=hash, group=group(service(script=script, count=2)))
    async with running(SqliteLog(machine.folder / "events.sqlite3", SystemClock())) as log:
        await log.append(ENTITY, ANY, [NewEvent.of(fact)])


async def _events(machine: Machine) -> list[Event]:
    async with running(SqliteLog(machine.folder / "events.sqlite3", SystemClock())) as log:
        return [e async for e in log.read(ENTITY) if isinstance(e, Event)]


async def _says(port: int, text: str) -> None:
    async def answers() -> bool:
        try:
            return await http_get(port, "hello.localhost") == (200, f"{text}\n".encode())
        except (OSError, IndexError):
            return False

    await eventually(answers, 30)


async def test_sigkill_of_the_provider_at_any_moment_loses_no_request(machine: Machine) -> None:
    rng = random.Random(7)
    await _put(machine, "v0", "h0")
    async with provider_process(machine) as (_, port):
        await _says(port, "v0")
    async with load(port, 500) as answers:
        for number in range(1, 4):
            # An update is begun and the provider killed somewhere in it; the next one ends it.
            await _put(machine, f"v{number}", f"h{number}")
            async with provider_process(machine) as (process, _):
                await asyncio.sleep(rng.uniform(0.0, 0.4))
                process.kill()
                await process.wait()
            async with provider_process(machine) as (_, again):
                assert again == port
                await _says(port, f"v{number}")
    lost = [answer for answer in answers if answer[0] != 200]
    assert not lost, f"{len(lost)} of {len(answers)}: {lost[:3]}"
    async with machine.provider() as provider:
        await eventually(lambda: provider.deploy.knows(LEASE))

        async def settled() -> bool:
            status = await provider.deploy.status(LEASE)
            return status["running_hash"] == "h3" and status["state"] == "deploy-complete"

        await eventually(settled)
        assert len(await provider.deploy.runtime.replicas()) == 2, "nothing is left of the attempts"
    events = await _events(machine)
    started = [e.payload.key for e in events if e.type == "deploy.started"]
    assert len(started) == len(set(started)), "no replica was started twice"


async def _proxy(provider: Provider) -> dict[str, Any]:
    found: dict[str, Any] = (await provider.deploy.keeper.list())["ingress"]
    return found


async def test_a_killed_proxy_is_back_with_its_routes(machine: Machine) -> None:
    async with machine.provider() as provider:
        await provider.up(group(service()))
        port = provider.deploy.ingress.port
        kept = await _proxy(provider)
        os.kill(kept["pid"], signal.SIGKILL)

        async def another() -> bool:
            return (await _proxy(provider))["pid"] != kept["pid"]

        await eventually(another)
        await _says(port, "hello")
        again = await _proxy(provider)
    # The same with no provider there to see it.
    os.kill(again["pid"], signal.SIGKILL)
    await _says(port, "hello")


async def test_the_keeper_killed_while_leases_are_started(machine: Machine) -> None:
    leases = [LeaseId("akash1owner", n, 1, 1, "akash1provider") for n in range(300, 308)]
    rng = random.Random(3)
    async with machine.provider() as provider:
        for lease in leases:
            await provider.put(group(service(hosts=[f"l{lease.dseq}.localhost"])), "h1", lease)
        for _ in range(3):
            await asyncio.sleep(rng.uniform(0.02, 0.15))
            before = provider.deploy.keeper.pid
            kill_keeper(before)
            await eventually(lambda before=before: provider.deploy.keeper.pid != before)
        for lease in leases:
            await provider.until("deploy.healthy", "h1", lease, seconds=60)
        for lease in leases:
            host = f"l{lease.dseq}.localhost"

            async def answers(host: str = host) -> bool:
                return await provider.get(host) == (200, b"hello\n")

            await eventually(answers)
        replicas = await provider.deploy.runtime.replicas()
        assert len(replicas) == len(leases)
        # What answers is what the keeper knows: no container runs that nobody remembers.
        parent = machine.settings.cgroup_parent.lstrip("/")
        groups = Path("/sys/fs/cgroup/pids", parent).glob("*/*/cgroup.procs")
        busy = {path.parent.name for path in groups if path.read_text().strip()}
        assert busy == {replica.key for replica in replicas}
