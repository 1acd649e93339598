"""Watches a workload that is up on the cluster, and keeps its objects as they were applied.

The cluster restarts what ends; we look at what it says, at once when something changed and else
every few seconds. Looks between the regular ones count for nothing but good news and restarts, so
that a burst of changes is not a row of failures. An API server that does not answer makes it
unknown.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.retry import Backoff
from leasehold.deploy.driver import Applied, Emit, Health
from leasehold.deploy.kubernetes import apply, pods
from leasehold.deploy.kubernetes.pods import Exit
from leasehold.deploy.replica import Replica
from leasehold.deploy.verdict import Verdicts
from leasehold.deploy.workload import stateful
from leasehold.model.events.lease import ReplicaExited

if TYPE_CHECKING:
    from leasehold.deploy.kubernetes.driver import KubernetesDriver

SETTLE = 0.2
"""Seconds to let changes come together before looking at them."""

log = get_logger(__name__)


class ClusterWatch(Verdicts):
    """Of one applied version; see :class:`~leasehold.deploy.driver.Watch`."""

    def __init__(
        self, driver: KubernetesDriver, applied: Applied, health: Health, emit: Emit
    ) -> None:
        super().__init__(
            applied,
            health,
            emit,
            settings=driver.settings,
            rng=driver.rng,
            market=driver.market,
        )
        self.driver = driver
        self.clock = driver.clock
        self.cluster = driver.cluster
        self._news = asyncio.Event()
        self._seen: set[tuple[str, int]] = set()
        self._repairs = 0
        self._repair_at = 0.0
        self._backoff = Backoff(first=2.0, cap=driver.settings.kubernetes.repair_period)

    def exited(self, replica: Replica) -> None:
        self._news.set()

    def look_again(self) -> None:
        self._news.set()

    async def run(self) -> None:
        stop = self.cluster.listen(self.applied.workload.name, self._news.set)
        try:
            due = self.clock.monotonic()
            while True:
                self._news.clear()
                counts = self.clock.monotonic() >= due
                await self._look(counts)
                if counts:
                    due = self.clock.monotonic() + self.wait()
                try:
                    async with self.clock.timeout(max(0.0, due - self.clock.monotonic())):
                        await self._news.wait()
                        await self.clock.sleep(SETTLE)
                except TimeoutError:
                    pass
        finally:
            stop()

    async def _look(self, counts: bool) -> None:
        if not self.cluster.reachable:
            self.unknown(self.cluster.why)
            return
        await self._tell_exits()
        try:
            await self._repair()
        except LeaseholdError as error:
            log.warning(
                "repair.failed", lease=str(self.applied.workload.lease), error=error.message
            )
        wrong = self._wrong()
        if not wrong:
            await self.healthy()
        elif counts or self.health.healthy is None:
            await self.unhealthy("; ".join(wrong))
        elif self.health.healthy:
            # Seen between two regular looks: the next one decides.
            self.health.reason = "; ".join(wrong)

    def _wrong(self) -> list[str]:
        """A reason a service that is not up."""
        workload = self.applied.workload
        here = self.cluster.of("Pod", workload.name)
        wrong = []
        for service in workload.services:
            kind = "StatefulSet" if stateful(service) else "Deployment"
            found = pods.progress(self.cluster.get(kind, workload.name, service.name), 0)
            if found.available >= service.count:
                continue
            why = next(
                (
                    trouble.message
                    for pod in pods.of_service(here, service.name)
                    if (trouble := pods.trouble(pod, self.settings.start_attempts)) is not None
                ),
                f"{found.available} of {service.count} answer",
            )
            wrong.append(f"{service.name}: {why}")
        return wrong

    async def _tell_exits(self) -> None:
        workload = self.applied.workload
        here = self.cluster.of("Pod", workload.name)
        for service in workload.services:
            for number, pod in enumerate(pods.of_service(here, service.name)):
                for end in pods.exits(pod):
                    if (end.pod, end.count) in self._seen:
                        continue
                    self._seen.add((end.pod, end.count))
                    await self._tell_exit(service.name, number, end)
        if len(self._seen) > 10_000:
            self._seen.clear()  # What is told again has the same key, and is kept once.

    async def _tell_exit(self, service: str, number: int, end: Exit) -> None:
        await self.emit(
            ReplicaExited(
                id=self.applied.workload.lease,
                service=service,
                replica=number,
                key=end.pod,
                status=end.status,
                reason=end.reason,
            ),
            key=f"exited/{end.pod}/{end.count}",
        )
        self.health.restarts[end.pod] = end.count + 1
        await self.driver.keep_log(
            self.applied.workload.lease, service, number, end.pod, previous=end.former
        )

    async def _repair(self) -> None:
        """Apply what somebody changed or removed; less and less often while they keep at it."""
        objects = self.driver.render(self.applied.workload)
        found = apply.drifted(self.cluster, objects, self.driver.fingerprints)
        unwanted = apply.leftovers(self.cluster, self.applied.workload.name, objects)
        if unwanted and not found:
            found = f"{' '.join(unwanted[0])} is left over"
        if not found:
            if self.clock.monotonic() >= self._repair_at + self._backoff.cap:
                self._repairs = 0
            return
        if self.clock.monotonic() < self._repair_at:
            return
        self._repairs += 1
        self._repair_at = self.clock.monotonic() + self._backoff.delay(self._repairs)
        lease = str(self.applied.workload.lease)
        log.warning("repair", lease=lease, found=found, times=self._repairs)
        api, name = self.driver.api, self.applied.workload.name
        await apply.apply(api, objects, self.driver.fingerprints, repair=True)
        await apply.prune(api, name, unwanted)
