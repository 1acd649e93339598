"""The driver of a cluster: leases as namespaces of objects that Kubernetes makes come true.

It holds nothing that could not be read again: what is wanted comes from the log, what is there from
the API server. Adopting therefore applies nothing and restarts nothing, and works while the API
server is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterable
from pathlib import Path

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.core.logs import get_logger
from leasehold.deploy.driver import Applied, Emit, Health, History
from leasehold.deploy.kubernetes import apply, kept
from leasehold.deploy.kubernetes.api import Api, Object
from leasehold.deploy.kubernetes.cache import Cluster, labels
from leasehold.deploy.kubernetes.render import PREFIX, Look, key, render
from leasehold.deploy.kubernetes.rollout import FIRST_WORD, LATE, ClusterRollout
from leasehold.deploy.kubernetes.watch import ClusterWatch
from leasehold.deploy.ports import LeaseMarket
from leasehold.deploy.settings import DeploySettings
from leasehold.deploy.workload import Workload, lease_name
from leasehold.model.market import LeaseId

SLEEPS_SINCE = (1, 30)
"""The first Kubernetes whose pods can wait before they end without a program of the image's."""

GONE_SECONDS = 120.0
"""How long a namespace may take to go before its removal is tried again."""

Rule = tuple[frozenset[str], frozenset[str] | None]

log = get_logger(__name__)


class KubernetesDriver:
    """See :class:`~leasehold.deploy.driver.Driver`. ``logs`` is the folder of kept logs."""

    late: tuple[str, ...] = LATE

    def __init__(
        self,
        api: Api,
        cluster: Cluster,
        settings: DeploySettings,
        logs: Path,
        *,
        market: LeaseMarket | None,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.api = api
        self.cluster = cluster
        self.settings = settings
        self.logs = logs
        self.market = market
        self.clock = clock
        self.rng = rng
        self.sleeps = True
        """Whether the cluster is new enough for pods to wait before they end."""
        self.fingerprints: apply.Fingerprints = {}
        self._rules: dict[LeaseId, Rule] = {}
        self._rendered: dict[LeaseId, tuple[Workload, Rule, bool, list[Object]]] = {}

    # -- what should be there ---------------------------------------------------------------------

    def render(self, workload: Workload, *, surge: bool = True) -> list[Object]:
        """Every object of the workload."""
        lease = workload.lease
        rule = self._rules.get(lease, (frozenset(), None))
        held = self._rendered.get(lease)
        if held is not None and held[0] is workload and held[1:3] == (rule, surge):
            return held[3]
        withheld, allowed = rule

        def may_lead(host: str) -> bool:
            return host in allowed if allowed is not None else host not in withheld

        made = render(
            workload, self.settings, Look(may_lead=may_lead, surge=surge, sleeps=self.sleeps)
        )
        self._rendered[lease] = (workload, rule, surge, made)
        return made

    def allow(self, lease: LeaseId, withheld: Iterable[str], allowed: Iterable[str] | None) -> bool:
        rule = (frozenset(withheld), None if allowed is None else frozenset(allowed))
        before = self._rules.get(lease, (frozenset(), None))
        self._rules[lease] = rule
        return rule != before

    def uris(self, workload: Workload) -> list[str]:
        """URLs and node ports of a workload."""
        scheme = "https" if self.settings.kubernetes.cluster_issuer else "http"
        found = []
        for service in workload.services:
            for expose in service.exposes:
                if expose.ingress:
                    hosts = workload.hosts(service, expose, self.settings.static_domain)
                    found += [f"{scheme}://{host}" for host in hosts]
        for port in self.node_ports(workload):
            proto = str(port["proto"]).lower()
            found.append(f"{proto}://{port['host']}:{port['externalPort']}")
        return found

    def node_ports(self, workload: Workload) -> list[dict[str, object]]:
        """The forwarded ports, as the status route of the market's API lists them."""
        found: list[dict[str, object]] = []
        for service in workload.services:
            item = self.cluster.get("Service", workload.name, f"{service.name}-np") or {}
            given = {
                (port["port"], port.get("protocol", "TCP")): port.get("nodePort")
                for port in item.get("spec", {}).get("ports") or ()
            }
            for expose in service.exposes:
                number = given.get((expose.outside_port, expose.proto))
                if expose.global_ and not expose.ingress and number:
                    found.append(
                        {
                            "host": self.settings.public_host,
                            "port": expose.port,
                            "externalPort": number,
                            "proto": expose.proto,
                            "name": service.name,
                        }
                    )
        return found

    # -- the driver -------------------------------------------------------------------------------

    def rollout(self, workload: Workload, before: Applied | None, emit: Emit) -> ClusterRollout:
        return ClusterRollout(self, workload, before, emit)

    def watch(self, applied: Applied, health: Health, emit: Emit) -> ClusterWatch:
        return ClusterWatch(self, applied, health, emit)

    async def adopt(self, lease: LeaseId, history: History) -> Applied | None:
        workload = history.workload
        if workload is None or set(history.revisions) != {s.name for s in workload.services}:
            return None
        if await self.cluster.heard(FIRST_WORD):
            here = [kind for kind in apply.CONTROLLERS if self.cluster.of(kind, workload.name)]
            if not here:
                return None
        log.info("deploy.adopted", lease=str(lease), known=self.cluster.reachable)
        return Applied(workload, history.revisions, history.digests)

    async def point(self, applied: Applied) -> None:
        wanted = [found for found in self.render(applied.workload) if found["kind"] == "Ingress"]
        namespace = applied.workload.name
        for found in wanted:
            # Should this not get through, what is there counts as changed, and is repaired.
            self.fingerprints[namespace, *key(found)] = ""
        try:
            await apply.apply(self.api, wanted, self.fingerprints)
            keep = {key(found) for found in wanted}
            for item in self.cluster.of("Ingress", namespace):
                if key(item) not in keep:
                    await self.api.delete("Ingress", item["metadata"]["name"], namespace)
        except LeaseholdError as error:
            if error.kind is not Kind.UNAVAILABLE:
                raise
            log.warning("point.later", namespace=namespace, error=error.message)

    async def sweep(self, applied: Applied) -> None:
        if not self.cluster.reachable:
            return
        name = applied.workload.name
        with contextlib.suppress(LeaseholdError):
            unwanted = apply.leftovers(self.cluster, name, self.render(applied.workload))
            await apply.prune(self.api, name, unwanted)

    async def remove(self, lease: LeaseId) -> None:
        namespace = lease_name(lease)
        await self.keep_logs(lease, self.cluster.of("Pod", namespace))
        await self.api.delete("Namespace", namespace)
        news = asyncio.Event()
        stop = self.cluster.listen(namespace, news.set)
        try:
            async with self.clock.timeout(GONE_SECONDS):
                while await self.api.get("Namespace", namespace) is not None:
                    news.clear()
                    if self.cluster.get("Namespace", "", namespace) is not None:
                        await news.wait()
                    else:
                        await self.clock.sleep(apply.LAG)
        except TimeoutError:
            raise unavailable(
                "namespace_lingers", f"namespace {namespace} is still being removed"
            ) from None
        finally:
            stop()
        for where in [where for where in self.fingerprints if where[0] == namespace]:
            del self.fingerprints[where]
        self._rules.pop(lease, None)
        self._rendered.pop(lease, None)

    # -- what would be lost -----------------------------------------------------------------------

    async def keep_logs(self, lease: LeaseId, pods: Iterable[Object]) -> None:
        """Keep the last lines of pods that are about to go."""
        numbers: dict[str, int] = {}
        for pod in pods:
            service = labels(pod).get(f"{PREFIX}service", "")
            number = numbers.get(service, 0)
            numbers[service] = number + 1
            await self.keep_log(lease, service, number, pod["metadata"]["name"])

    async def keep_log(
        self, lease: LeaseId, service: str, number: int, pod: str, *, previous: bool = False
    ) -> None:
        """Keep the last lines of a replica that ended, or is about to, within the retention."""
        folder = self.logs / lease_name(lease) / service
        try:
            async with self.clock.timeout(self.settings.kubernetes.request_timeout):
                lines = [
                    line
                    async for line in self.api.logs(
                        lease_name(lease), pod, tail=kept.LINES, previous=previous
                    )
                ]
        except (LeaseholdError, TimeoutError) as error:
            log.debug("logs.not_kept", lease=str(lease), pod=pod, error=str(error))
            return
        await asyncio.to_thread(kept.keep, folder, number, lines, self.settings)

    async def last_warning(self, namespace: str) -> str:
        """What the cluster last complained about in a namespace; empty when it did not."""
        try:
            found, _ = await self.api.list("Event", namespace)
        except LeaseholdError:
            return ""
        warnings = [e for e in found if e.get("type") == "Warning"]
        warnings.sort(key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "")
        return f"{warnings[-1]['reason']}: {warnings[-1]['message']}" if warnings else ""
