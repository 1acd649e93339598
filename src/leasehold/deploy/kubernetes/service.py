"""The deploy system of a cluster, put together.

Like that of one machine (:mod:`leasehold.deploy.service`) to everybody who uses it; what a lease's
events ask for is worked out by the same activity and the same state machine. It starts whether or
not the API server answers, and stopping it leaves every workload as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from lightkube import operators

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, Violation, not_found
from leasehold.core.logs import get_logger
from leasehold.deploy import logs
from leasehold.deploy.doctor import Check
from leasehold.deploy.kubernetes import exec, inventory, pods
from leasehold.deploy.kubernetes import logs as cluster_logs
from leasehold.deploy.kubernetes.api import EVERYWHERE, Api, Object
from leasehold.deploy.kubernetes.cache import Cluster, notes
from leasehold.deploy.kubernetes.driver import SLEEPS_SINCE, KubernetesDriver
from leasehold.deploy.kubernetes.exec import ClusterExec
from leasehold.deploy.kubernetes.render import MANAGER, PREFIX
from leasehold.deploy.leases import Deployments, Unseal
from leasehold.deploy.logs import Line
from leasehold.deploy.ports import LeaseMarket
from leasehold.deploy.settings import DeploySettings
from leasehold.deploy.workload import Workload, lease_name, unsupported
from leasehold.events.event import Entity, Event
from leasehold.events.log import Log
from leasehold.model.events.market import LeaseClosed
from leasehold.model.manifest import ManifestGroup
from leasehold.model.market import LeaseId
from leasehold.model.resources import GroupSpec
from leasehold.observe.engine import Engine

OTHERS = {"app.kubernetes.io/managed-by": operators.not_equal(MANAGER)}
"""Pods that are not ours."""

FOREVER = 86_400.0
"""Seconds to wait for an API server that may never come."""

RETENTION_PERIOD = 600.0
"""Seconds between looks for logs that have outlived their retention."""

log = get_logger(__name__)


class KubernetesService(Deployments):
    """Every deployment of ``provider`` (its address) on one cluster; several providers may share
    it. ``folder`` holds kept logs. For the rest see
    :class:`~leasehold.deploy.leases.Deployments`."""

    def __init__(
        self,
        log: Log,
        engine: Engine,
        folder: Path,
        provider: str,
        settings: DeploySettings | None = None,
        *,
        market: LeaseMarket | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        unseal: Unseal | None = None,
    ) -> None:
        super().__init__(log, engine, folder, settings, market=market, clock=clock, unseal=unseal)
        rng = rng or random.Random()
        self.api = Api(self.settings.kubernetes, clock=self.clock)
        self.cluster = Cluster(self.api, provider, clock=self.clock, rng=rng)
        self.driver: KubernetesDriver = KubernetesDriver(
            self.api,
            self.cluster,
            self.settings,
            self.folder / "logs",
            market=market,
            clock=self.clock,
            rng=rng,
        )
        self._unheard_of: dict[str, float] = {}

    # -- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        await super().start()
        self.resources.push_async_callback(self.api.close)
        self.spawn(self.cluster.serve(), name="cluster")
        self.spawn(self._learn_version(), name="version")
        self.spawn(self._take_stock(), name="inventory")
        self.spawn(self._sweep(), name="orphans")
        self.spawn(self._expire_logs(), name="log retention")

    async def stop(self) -> None:
        """Let go of everything; workloads go on."""
        await self._let_go()
        await self.cluster.shutdown()

    async def _learn_version(self) -> None:
        while True:
            await self.cluster.heard(FOREVER)
            try:
                version = await self.api.version()
            except LeaseholdError:
                await self.clock.sleep(1.0)
                continue
            self.driver.sleeps = version >= SLEEPS_SINCE
            log.info("cluster.version", version=f"{version[0]}.{version[1]}")
            return

    async def _take_stock(self) -> None:
        """What the nodes offer, again when a node changes, and every so often for the others'
        pods. While the API server is away the last look stands."""
        news = asyncio.Event()
        stop = self.cluster.listen("", news.set)
        try:
            while True:
                await self.cluster.heard(FOREVER)
                news.clear()
                with contextlib.suppress(LeaseholdError):
                    self.cluster.check()
                    others, _ = await self.api.list("Pod", EVERYWHERE, labels=OTHERS)
                    classes, _ = await self.api.list("StorageClass")
                    names = [found["metadata"]["name"] for found in classes]
                    here = self.cluster.of("Node")
                    self.inventory.update(inventory.nodes(here, others, names, self.settings))
                # A busy cluster's nodes say something every few seconds: once a second is enough.
                await self.clock.sleep(1.0)
                with contextlib.suppress(TimeoutError):
                    async with self.clock.timeout(self.settings.kubernetes.inventory_period):
                        await news.wait()
        finally:
            stop()

    async def _expire_logs(self) -> None:
        """Logs outlive their lease by the retention, not longer."""
        while True:
            alive = {lease_name(lease) for lease in self._deployments}
            before = self.clock.now() - self.settings.log_retention
            await asyncio.to_thread(logs.expire, self.driver.logs, alive, before)
            await self.clock.sleep(RETENTION_PERIOD)

    # -- orphans ----------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        while True:
            await self.clock.sleep(self.settings.kubernetes.orphan_period)
            with contextlib.suppress(LeaseholdError):
                await self.sweep()

    async def sweep(self) -> list[str]:
        """Remove namespaces whose lease is over; of leases never heard of only after a grace,
        since a provider may have been restored from an older backup. What was removed."""
        self.cluster.check()
        removed = []
        for found in self.cluster.namespaces():
            name = found["metadata"]["name"]
            lease = self._lease_of(found)
            if lease is None or lease in self._deployments:
                self._unheard_of.pop(name, None)
                continue
            if found["metadata"].get("deletionTimestamp"):
                continue
            events = [e async for e in self.log.read(Entity("lease", str(lease)))]
            payloads = [event.payload for event in events if isinstance(event, Event)]
            if payloads and not any(isinstance(fact, LeaseClosed) for fact in payloads):
                continue  # Ours and open: its deployment is on its way.
            if not payloads:
                since = self._unheard_of.setdefault(name, self.clock.monotonic())
                grace = self.settings.kubernetes.orphan_grace
                if self.clock.monotonic() - since < grace:
                    log.warning("orphan.unknown", lease=str(lease), namespace=name)
                    continue
            log.warning("orphan.removed", lease=str(lease), namespace=name)
            await self.api.delete("Namespace", name)
            self._unheard_of.pop(name, None)
            removed.append(name)
        return removed

    def _lease_of(self, namespace: Object) -> LeaseId | None:
        """None when it does not say, or when its name is not that lease's: hands off."""
        try:
            lease = LeaseId.parse(notes(namespace).get(f"{PREFIX}lease-id", ""))
        except (ValueError, LeaseholdError):
            return None
        return lease if lease_name(lease) == namespace["metadata"]["name"] else None

    # -- what can run here ------------------------------------------------------------------------

    def unsupported(self, group: ManifestGroup, leased: GroupSpec) -> list[Violation]:
        """Everything of ``group`` that cannot run on the cluster, with the reason."""
        gpus = any(node.offered.gpu for node in self.inventory.nodes.values())
        return [v for v in unsupported(group) if not (gpus and v.code == "no_gpu")]

    def doctor(self) -> list[Check]:
        """What the cluster lacks."""
        nodes = len(self.inventory.nodes)
        return [
            Check("cluster", "ok", f"{self.api.server} answers")
            if self.cluster.reachable
            else Check("cluster", "error", self.cluster.why, "see deploy.kubernetes.kubeconfig"),
            Check("nodes", "ok", f"{nodes} nodes take workloads")
            if nodes
            else Check("nodes", "error", "no node takes workloads", "add or uncordon a node"),
        ]

    @property
    def ingress_url(self) -> str:
        """Where the cluster's ingress listens; a workload answers there to its own host name."""
        return f"http://{self.settings.public_host}"

    local_ingress_url = ingress_url

    # -- for tenants and operators ----------------------------------------------------------------

    async def status(self, lease: LeaseId) -> dict[str, Any]:
        """Services with wanted and available; health (None: unknown), URLs, last error."""
        deployment = self._deployments.get(lease)
        if deployment is None:
            if lease in self._broken:
                raise LeaseholdError("internal", self._broken[lease], kind=Kind.INTERNAL)
            raise not_found("deployment", str(lease))
        workload, applied, health = deployment.wanted, deployment.applied, deployment.health
        reachable = self.cluster.reachable
        return {
            "lease": str(lease),
            "state": deployment.state.value,
            "hash": workload.hash if workload else "",
            "running_hash": applied.workload.hash if applied else "",
            "healthy": health.healthy if reachable else None,
            "reason": health.reason if reachable else self.cluster.why,
            "attempts_left": health.attempts_left,
            "services": self._services(workload) if workload else {},
            "uris": self.driver.uris(workload) if workload else [],
            "forwarded_ports": self.driver.node_ports(workload) if workload else [],
            "error": deployment.error.to_dict() if deployment.error else None,
        }

    def _services(self, workload: Workload) -> dict[str, Any]:
        found: dict[str, Any] = {}
        here = self.cluster.of("Pod", workload.name)
        for service in workload.services:
            mine = pods.of_service(here, service.name)
            up = sum(map(pods.ready, mine))
            found[service.name] = {
                "name": service.name,
                "image": service.image,
                "total": service.count,
                "available": up if self.cluster.reachable else None,
                "replicas": [self._replica_status(number, pod) for number, pod in enumerate(mine)],
            }
        return found

    def _replica_status(self, number: int, pod: Object) -> dict[str, Any]:
        ended = pods.exits(pod)
        trouble = pods.trouble(pod, self.settings.start_attempts)
        return {
            "number": number,
            "key": pod["metadata"]["name"],
            "revision": pod["metadata"]["labels"].get(f"{PREFIX}revision", ""),
            "state": "running" if pods.running(pod) else "waiting",
            "ready": pods.ready(pod),
            "node": pod["spec"].get("nodeName"),
            "started_at": pods.started_at(pod),
            "restarts": int(pods.container(pod).get("restartCount", 0)),
            "ended": ended[-1].reason if ended else None,
            "trouble": trouble.message if trouble else None,
        }

    def logs(
        self,
        lease: LeaseId,
        service: str | None = None,
        *,
        follow: bool = False,
        tail: int | None = None,
    ) -> AsyncIterator[Line]:
        """Lines of a lease's replicas, oldest first; with ``follow`` also those to come.

        Following ends with the lease. ``tail`` keeps the last so many of each replica. After the
        lease has closed the last lines of each replica are kept within the retention.
        """
        deployment = self._deployments.get(lease)
        ended = deployment.gone if deployment is not None and follow else None
        return cluster_logs.read(self.driver, lease, service, tail=tail, ended=ended)

    async def search_logs(
        self, lease: LeaseId, service: str | None, text: str, limit: int
    ) -> list[Line]:
        """The newest ``limit`` lines that contain ``text``, oldest first."""
        needle = text.lower()
        found = [line async for line in self.logs(lease, service) if needle in line.text.lower()]
        return found[-limit:]

    async def exec(
        self,
        lease: LeaseId,
        service: str,
        command: Sequence[str],
        *,
        replica: int = 0,
        tty: bool = False,
        stdin: bool = False,
    ) -> ClusterExec:
        """Run a command in a replica, with pipes or a terminal."""
        self.cluster.check()
        name = lease_name(lease)
        here = self.cluster.of("Pod", name)
        if not here:
            raise not_found("running replica of lease", str(lease))
        mine = pods.of_service(here, service)
        if not mine:
            raise not_found("service", service)
        if replica >= len(mine) or not pods.running(mine[replica]):
            raise not_found("running replica", f"{service}-{replica}")
        return await exec.start(
            self.api,
            lambda run: self.spawn(run, name=f"exec {lease}"),
            name,
            mine[replica]["metadata"]["name"],
            command,
            tty=tty,
            stdin=stdin,
        )

    async def teardown_all(self) -> list[str]:
        """Remove every namespace of this provider's leases; what was removed.

        The leases are not closed by it: a provider that starts again deploys them anew.
        """
        self.cluster.check()
        self.dismantled = True
        await self._let_go()
        removed = []
        for found in self.cluster.namespaces():
            name = found["metadata"]["name"]
            await self.api.delete("Namespace", name)
            removed.append(f"namespace {name} of {notes(found).get(f'{PREFIX}lease-id')}")
        self._deployments.clear()
        return removed
