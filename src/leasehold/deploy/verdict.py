"""What is made of looks at a workload: healthy, unhealthy or unknown, and when to give up.

Three answers, not two. *Healthy*: every replica of every service answers. *Unhealthy*: some
replica is known not to. *Unknown*: what runs it could not be asked. Unknown changes nothing, counts
for nothing and closes nothing. Only unhealthy checks in a row add up to giving the lease back, with
the attempts left visible all along.
"""

from __future__ import annotations

import random

from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.deploy.driver import Applied, Emit, Health
from leasehold.deploy.ports import LeaseMarket
from leasehold.deploy.settings import DeploySettings
from leasehold.deploy.workload import Workload
from leasehold.model.events.lease import WorkloadHealthy, WorkloadUnhealthy

UNSTABLE = 10000
"""The market's reason code for a lease closed because its workload would not stay up."""

log = get_logger(__name__)


class Verdicts:
    """About one applied version. ``market`` hears when it is given up (None: nobody does)."""

    def __init__(
        self,
        applied: Applied,
        health: Health,
        emit: Emit,
        *,
        settings: DeploySettings,
        rng: random.Random,
        market: LeaseMarket | None,
    ) -> None:
        self.applied = applied
        self.health = health
        self.emit = emit
        self.settings = settings
        self.rng = rng
        self.market = market
        self.health.attempts_left = settings.monitor_attempts

    def wait(self) -> float:
        """Seconds until the next look."""
        s, rng = self.settings, self.rng
        if self.health.healthy:
            return s.monitor_period + rng.uniform(0, s.monitor_jitter)
        return s.monitor_retry + rng.uniform(0, s.monitor_retry_jitter)

    def unknown(self, why: str) -> None:
        if self.health.healthy is not None or self.health.reason != why:
            log.warning("monitor.unknown", lease=str(self.applied.workload.lease), reason=why)
        self.health.healthy, self.health.reason = None, why

    async def healthy(self) -> None:
        told, self.health.told = self.health.told, True
        self.health.healthy, self.health.reason = True, ""
        self.health.unhealthy_checks = 0
        self.health.attempts_left = self.settings.monitor_attempts
        if not told:
            await self.emit(self._event(WorkloadHealthy))

    async def unhealthy(self, reason: str) -> None:
        told, self.health.told = self.health.told, False
        self.health.healthy, self.health.reason = False, reason
        self.health.unhealthy_checks += 1
        self.health.attempts_left = max(
            0, self.settings.monitor_attempts - self.health.unhealthy_checks
        )
        if told is not False:
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
        if self.market is None:
            return
        try:
            await self.market.close_bid(lease, reason=UNSTABLE)
            log.warning("monitor.gave_up", lease=str(lease), reason=self.health.reason)
        except (LeaseholdError, OSError) as error:
            log.warning("monitor.close_failed", lease=str(lease), error=str(error))
