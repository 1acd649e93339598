"""Watches a workload that is up on this machine: starts again what ended, says how it is.

Every replica is asked whether it answers; :mod:`.verdict` makes of it what is said and when the
lease is given up. A replica that ended is started again, later each time.
"""

from __future__ import annotations

import asyncio

from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.retry import Backoff
from leasehold.deploy.driver import Applied, Emit, Health
from leasehold.deploy.replica import Replica, State
from leasehold.deploy.rollout import Parts, Rollout, tcp_ports, wait_status
from leasehold.deploy.verdict import Verdicts
from leasehold.model.events.lease import ReplicaExited

log = get_logger(__name__)


class Monitor(Verdicts):
    """Of one applied version; cancelled before another is brought up."""

    def __init__(self, parts: Parts, applied: Applied, health: Health, emit: Emit) -> None:
        super().__init__(
            applied, health, emit, settings=parts.settings, rng=parts.rng, market=parts.market
        )
        self.parts = parts
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
                wait = self.wait()
                try:
                    async with self.parts.clock.timeout(wait):
                        await self._news.wait()
                except TimeoutError:
                    pass

    async def _check(self) -> list[str]:
        """One look. Returns the keys that should run and do not."""
        try:
            lease = self.applied.workload.lease
            found = {r.key: r for r in await self.parts.runtime.replicas(lease)}
            missing, silent = await self._ask(found)
        except (LeaseholdError, OSError) as error:
            self.unknown(str(error))
            return []
        if not missing and not silent:
            await self.healthy()
        else:
            names = sorted({key.rsplit("-", 2)[0].split("-", 1)[1] for key in missing + silent})
            how = "not running" if missing else "not answering"
            await self.unhealthy(f"{', '.join(names)}: {how}")
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
