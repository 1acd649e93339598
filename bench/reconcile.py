"""A provider starts and finds 1,000 leases as they should be.

``value``: milliseconds from the engine's start until every deployment was folded from the log,
compared with what runs, and found right; nothing is started or written. On SQLite; where the
PostgreSQL log is there the same is measured on it (``postgres_ms``). ``peer``: folding the same
events into dictionaries, one read of the whole log, without engine or deployments.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import _deploy_node as nodes
from bench.harness import interleaved, median, result
from leasehold.core import logs
from leasehold.core.clock import SystemClock
from leasehold.core.service import running
from leasehold.deploy.machine import State
from leasehold.deploy.replica import Replica
from leasehold.deploy.replica import State as ReplicaState
from leasehold.deploy.service import DeployService
from leasehold.deploy.settings import DeploySettings
from leasehold.deploy.testing import MemoryImages, MemoryRuntime, MemoryVolumes
from leasehold.deploy.workload import Workload
from leasehold.events.event import Entity, NewEvent
from leasehold.events.sqlite import SqliteLog
from leasehold.model.events.lease import ManifestReceived, WorkloadHealthy, WorkloadRunning
from leasehold.observe.engine import Engine

REVISION = "0123456789"


def run(quick: bool) -> dict[str, Any]:
    logs.configure("error")
    leases = 200 if quick else 1000
    ours, peer, left = asyncio.run(_measure(3 if quick else 5, leases))
    return result(
        "reconcile",
        median(ours),
        "ms",
        peer="one read of the log",
        peer_value=median(peer),
        higher_is_better=False,
        aim="< 1 s for 1,000 leases",
        leases=leases,
        started=left,
    )


async def _measure(runs: int, leases: int) -> tuple[list[float], list[float], int]:
    folder = Path(tempfile.mkdtemp(prefix="leasehold-reconcile-"))
    clock = SystemClock()
    log = SqliteLog(folder / "events.sqlite3", clock)
    starts = 0
    try:
        async with running(log):
            replicas = {}
            for number in range(leases):
                key = await _write(log, number)
                replicas[key] = Replica(
                    key,
                    nodes.lease(number),
                    "web",
                    REVISION,
                    0,
                    ReplicaState.RUNNING,
                    mark=number + 1,
                )

            async def ours() -> float:
                nonlocal starts
                engine = Engine(log, clock)
                deploy = DeployService(
                    log, engine, MemoryImages(), MemoryVolumes(), folder / "d", DeploySettings()
                )
                runtime = MemoryRuntime(clock)
                runtime.running = dict(replicas)
                deploy.parts.runtime = runtime
                deploy.parts.routes.network = deploy.parts.routes.ingress = None
                deploy.parts.routes._names = None
                actors: dict[Any, Any] = deploy._deployments
                async with asyncio.TaskGroup() as tasks:
                    deploy._tasks = tasks
                    began = time.monotonic()
                    async with running(engine):
                        while len(actors) < leases or any(
                            d.state is not State.COMPLETE or d.applied is None
                            for d in actors.values()
                        ):
                            await asyncio.sleep(0.002)
                        took = time.monotonic() - began
                    await deploy._let_go()
                starts += runtime.starts
                return took * 1000

            async def peer() -> float:
                began = time.monotonic()
                found: dict[Entity, list[str]] = {}
                async for event in log.read_all():
                    found.setdefault(event.entity, []).append(event.payload.hash)
                return (time.monotonic() - began) * 1000

            values = await interleaved(runs, ours, peer)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return values[0], values[1], starts


async def _write(log: SqliteLog, number: int) -> str:
    lease = nodes.lease(number)
    group = nodes.group(number)
    running_ = WorkloadRunning(id=lease, hash="h1", revisions={"web": REVISION})
    facts = [
        ManifestReceived(id=lease, hash="h1", group=group),
        running_,
        WorkloadHealthy(id=lease, hash="h1"),
    ]
    await log.append(Entity("lease", str(lease)), None, [NewEvent.of(fact) for fact in facts])
    workload = Workload.of(lease, "h1", group)
    return workload.key(workload.services[0], REVISION, 0)
