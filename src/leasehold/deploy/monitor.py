"""Watches a workload that is up: starts again what ended, says when it is well and when it is not.

Three answers, not two. *Healthy*: every replica of every service answers. *Unhealthy*: some
replica is known not to. *Unknown*: the runtime could not be asked. Unknown changes nothing, counts
for nothing and closes nothing. Only unhealthy checks in a row, after a grace while anything is
being started, add up to giving the lease back, with the attempts left visible all along.
"""

from __future__ import annotations

import asyncio

from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.retry import Backoff
from leasehold.deploy.driver import Applied, Emit, Health
from leasehold.deploy.replica import Replica, State
from leasehold.deploy.rollout import Parts, Rollout, tcp_ports, wait_status
from leasehold.deploy.workload import Workload
from leasehold.model.events.lease import ReplicaExited, WorkloadHealthy, WorkloadUnhealthy

UNSTABLE = 10000
"""The market's reason code for a lease closed because its workload would not stay up."""

log = get_logger(__name__)


class Monitor:
    """Of one applied version; cancelled before another is brought up."""

    def __init__(self, parts: Parts, applied: Applied, health: Health, emit: Emit) -> None:
        self.parts = parts
        self.applied = applied
        self.health = health
        self.emit = emit
        self.settings = parts.settings
        self.health.attempts_left = self.settings.monitor_attempts
        self._news = asyncio.Event()
        self._ended: dict[str, Replica] = {}

    def exited(self, replica: Replica) -> None:
        self._ended[replica.key] = replica
        self._news.set()

    def look_again(self) -> None:
        self._news.set()

    async def run(self) -> None:
        restarting: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._news.clear()
                missing = await self._check()
                for key in missing:
                    if key not in restarting or restarting[key].done():
                        restarting[key] = tasks.create_task(self._restart(key))
                wait = self._wait()
                try:
                    async with self.parts.clock.timeout(wait):
                        await self._news.wait()
                except TimeoutError:
                    pass

    def _wait(self) -> float:
        s, rng = self.settings, self.parts.rng
        if self.health.healthy:
            return s.monitor_period + rng.uniform(0, s.monitor_jitter)
        return s.monitor_retry + rng.uniform(0, s.monitor_retry_jitter)

    async def _check(self) -> list[str]:
        """One look. Returns the keys that should run and do not."""
        try:
            lease = self.applied.workload.lease
            found = {r.key: r for r in await self.parts.runtime.replicas(lease)}
            missing, silent = await self._ask(found)
        except (LeaseholdError, OSError) as error:
            self._unknown(str(error))
            return []
        if not missing and not silent:
            await self._healthy()
        else:
            names = sorted({key.rsplit("-", 2)[0].split("-", 1)[1] for key in missing + silent})
            how = "not running" if missing else "not answering"
            await self._unhealthy(f"{', '.join(names)}: {how}")
        return missing

    async def _ask(self, found: dict[str, Replica]) -> tuple[list[str], list[str]]:
        missing, silent = [], []
        for key, (service, _) in self.applied.keys().items():
            replica = found.get(key)
            if replica is None or replica.state is not State.RUNNING:
                missing.append(key)
                if replica is not None:
                    self._ended.setdefault(key, replica)
            elif not await self.parts.runtime.answers(replica, tcp_ports(service)):
                silent.append(key)
        return missing, silent

    def _unknown(self, why: str) -> None:
        if self.health.healthy is not None or self.health.reason != why:
            log.warning("monitor.unknown", lease=str(self.applied.workload.lease), reason=why)
        self.health.healthy, self.health.reason = None, why

    async def _healthy(self) -> None:
        said = self.health.healthy
        self.health.healthy, self.health.reason = True, ""
        self.health.unhealthy_checks = 0
        self.health.attempts_left = self.settings.monitor_attempts
        if said is False:
            await self.emit(self._event(WorkloadHealthy))

    async def _unhealthy(self, reason: str) -> None:
        before = self.health.healthy
        self.health.healthy, self.health.reason = False, reason
        self.health.unhealthy_checks += 1
        self.health.attempts_left = max(
            0, self.settings.monitor_attempts - self.health.unhealthy_checks
        )
        if before is not False:
            workload = self.applied.workload
            await self.emit(WorkloadUnhealthy(id=workload.lease, hash=workload.hash, reason=reason))
        if self.health.unhealthy_checks > self.settings.monitor_attempts:
            await self._give_up()

    def _event(self, kind: type[WorkloadHealthy]) -> WorkloadHealthy:
        workload: Workload = self.applied.workload
        return kind(id=workload.lease, hash=workload.hash)

    async def _give_up(self) -> None:
        """Close the bid; tried again at every further check until the market has it."""
        lease = self.applied.workload.lease
        if self.parts.market is None:
            return
        try:
            await self.parts.market.close_bid(lease, reason=UNSTABLE)
            log.warning("monitor.gave_up", lease=str(lease), reason=self.health.reason)
        except (LeaseholdError, OSError) as error:
            log.warning("monitor.close_failed", lease=str(lease), error=str(error))

    async def _restart(self, key: str) -> None:
        """Start one replica again, later each time, until it is up or we are cancelled."""
        service, number = self.applied.keys()[key]
        workload = self.applied.workload
        ended = self._ended.pop(key, None)
        if ended is not None:
            await self.emit(
                ReplicaExited(
                    id=workload.lease,
                    service=service.name,
                    replica=number,
                    key=key,
                    status=wait_status(ended),
                    reason=str(ended.ended or ""),
                ),
                key=f"exited/{key}/{ended.started_at}",
            )
            if ended.ended and ended.ended.at - ended.started_at > self.settings.restart_reset:
                self.health.restarts[key] = 0
        # The others go on alone meanwhile.
        await self._point_routes()
        restarts = self.health.restarts[key] = self.health.restarts.get(key, 0) + 1
        await self.parts.clock.sleep(
            min(self.settings.restart_cap, self.settings.restart_first * 2.0 ** (restarts - 1))
        )
        backoff = Backoff(first=1.0, cap=self.settings.restart_cap, rng=self.parts.rng)
        failures = 0
        while True:
            try:
                await Rollout(self.parts, workload, self.applied, self.emit).restart(
                    self.applied, service, number
                )
                self._news.set()
                return
            except (LeaseholdError, OSError) as error:
                failures += 1
                log.warning("monitor.restart_failed", replica=key, error=str(error))
                await self.parts.clock.sleep(backoff.delay(failures))

    async def _point_routes(self) -> None:
        try:
            lease = self.applied.workload.lease
            await self.parts.routes.move(self.applied, await self.parts.runtime.replicas(lease))
        except (LeaseholdError, OSError) as error:
            log.warning("monitor.routes", error=str(error))
