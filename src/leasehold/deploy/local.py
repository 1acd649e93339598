"""The driver of this machine: replicas of its runtime, and the routes that lead to them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.deploy.driver import Applied, Emit, Health, History
from leasehold.deploy.monitor import Monitor
from leasehold.deploy.replica import State
from leasehold.deploy.rollout import COMES_UP_LATE, Parts, Rollout
from leasehold.deploy.workload import Workload
from leasehold.model.market import LeaseId

log = get_logger(__name__)


class LocalDriver:
    """See :class:`~leasehold.deploy.driver.Driver`."""

    late: tuple[str, ...] = COMES_UP_LATE

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.settings = parts.settings
        self.clock = parts.clock
        self.rng = parts.rng

    def rollout(self, workload: Workload, before: Applied | None, emit: Emit) -> Rollout:
        return Rollout(self.parts, workload, before, emit)

    def watch(self, applied: Applied, health: Health, emit: Emit) -> Monitor:
        return Monitor(self.parts, applied, health, emit)

    def allow(self, lease: LeaseId, withheld: Iterable[str], allowed: Iterable[str] | None) -> bool:
        return self.parts.routes.allow(lease, withheld, allowed)

    async def adopt(self, lease: LeaseId, history: History) -> Applied | None:
        """No image or volume is asked for: adopting works while the registry is down."""
        workload, revisions = history.workload, history.revisions
        if workload is None or set(revisions) != {s.name for s in workload.services}:
            return None
        applied = Applied(workload, revisions, history.digests)
        mine = {replica.key: replica for replica in await self.parts.runtime.replicas(lease)}
        running = [r for r in mine.values() if r.state is State.RUNNING]
        if not applied.keys().keys() & {replica.key for replica in running}:
            return None
        self.parts.marks.setdefault(str(lease), running[0].mark)
        await self.parts.routes.move(applied, running)
        log.info("deploy.adopted", lease=str(lease), replicas=len(running))
        return applied

    async def point(self, applied: Applied) -> None:
        replicas = await self.parts.runtime.replicas(applied.workload.lease)
        await self.parts.routes.move(applied, replicas)

    async def sweep(self, applied: Applied) -> None:
        wanted = applied.keys()
        with contextlib.suppress(LeaseholdError):
            for replica in await self.parts.runtime.replicas(applied.workload.lease):
                if replica.key not in wanted:
                    await self.parts.runtime.remove_replica(replica.key)

    async def remove(self, lease: LeaseId) -> None:
        await self.parts.routes.forget(lease)
        mine = await self.parts.runtime.replicas(lease)
        async with asyncio.TaskGroup() as tasks:
            for replica in mine:
                tasks.create_task(
                    self.parts.runtime.remove_replica(replica.key, grace=self.settings.stop_grace)
                )
        if self.parts.last_of(lease):
            await self.parts.volumes.release(lease.owner, lease.dseq)
        await self.parts.images.release(str(lease))
        self.parts.runtime.forget_lease(lease)
        self.parts.marks.pop(str(lease), None)
