"""The deploy system of one node, put together.

What a lease's events ask for is worked out by :mod:`.leases`; :class:`DeployService` adds the parts
that containers of this machine are made of. Stopping it leaves every workload running; the next one
finds them at the keeper and goes on.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, Violation, not_found
from leasehold.core.logs import get_logger
from leasehold.core.service import Group
from leasehold.deploy import logs
from leasehold.deploy.doctor import Check, doctor
from leasehold.deploy.ingress import certificates
from leasehold.deploy.ingress.haproxy import Ingress
from leasehold.deploy.inventory import this_machine
from leasehold.deploy.keeper.client import KeeperClient
from leasehold.deploy.leases import Deployments, Unseal
from leasehold.deploy.local import LocalDriver
from leasehold.deploy.logs import Line
from leasehold.deploy.net.names import Names
from leasehold.deploy.net.node import NODE, NodeNetwork
from leasehold.deploy.node_ports import NodePorts
from leasehold.deploy.oci import cgroups, exec
from leasehold.deploy.oci.driver import OciRuntime
from leasehold.deploy.oci.exec import Exec
from leasehold.deploy.ports import Images, LeaseMarket, Volumes
from leasehold.deploy.process import ProcessRuntime
from leasehold.deploy.replica import Replica
from leasehold.deploy.replica import State as ReplicaState
from leasehold.deploy.rollout import Parts
from leasehold.deploy.routes import Routes
from leasehold.deploy.settings import DeploySettings
from leasehold.deploy.workload import Workload, lease_name, unsupported
from leasehold.events.log import Log
from leasehold.model.manifest import ManifestGroup
from leasehold.model.market import LeaseId
from leasehold.model.resources import GroupSpec
from leasehold.observe.engine import Engine

RETENTION_PERIOD = 600.0
"""Seconds between looks for logs that have outlived their retention."""

log = get_logger(__name__)


class DeployService(Deployments):
    """``folder`` (absolute) holds everything of the node's workloads; one provider a folder.

    ``images`` and ``volumes`` are where images and persistent volumes come from; for the rest see
    :class:`~leasehold.deploy.leases.Deployments`.
    """

    def __init__(
        self,
        log: Log,
        engine: Engine,
        images: Images,
        volumes: Volumes,
        folder: Path,
        settings: DeploySettings | None = None,
        *,
        market: LeaseMarket | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        unseal: Unseal | None = None,
    ) -> None:
        super().__init__(log, engine, folder, settings, market=market, clock=clock, unseal=unseal)
        settings = self.settings
        self.keeper = KeeperClient(self.folder / "keeper", clock=self.clock)
        self.network: NodeNetwork | None = None
        self.names: Names | None = None
        self.runtime: OciRuntime | ProcessRuntime
        if settings.runtime == "process":
            self.runtime = ProcessRuntime(
                self.keeper, self.folder / "process", settings, clock=self.clock
            )
        else:
            self.network, self.names = self._network(), self._names()
            self.runtime = OciRuntime(
                self.keeper, self.network, self.folder / "oci", settings, clock=self.clock
            )
        self.ingress = Ingress(
            self.keeper,
            self.folder / "ingress",
            network=NODE if self.network else None,
            address=settings.ingress_address,
            ports=settings.ingress_ports,
            tls_ports=settings.ingress_tls_ports if settings.https else (),
            redirect=settings.ingress_redirect,
            threads=settings.ingress_threads,
            maxconn=settings.ingress_maxconn,
            drain_seconds=settings.drain,
            clock=self.clock,
        )
        self.certificates = certificates.from_settings(
            self.ingress, self.folder / "certificates", settings, clock=self.clock, rng=rng
        )
        self.routes = Routes(
            self.network, self.ingress, self.names, settings, self.folder / "ports.json"
        )
        self.parts = Parts(
            runtime=self.runtime,
            images=images,
            volumes=volumes,
            routes=self.routes,
            market=market,
            settings=settings,
            clock=self.clock,
            rng=rng or random.Random(),
            last_of=self._last_of,
        )
        self.driver = LocalDriver(self.parts)
        self._services = Group(
            [
                part
                for part in (
                    self.keeper,
                    self.network,
                    self.names,
                    self.ingress,
                    self.certificates,
                    self.runtime,
                )
                if part is not None
            ],
            "deploy parts",
            clock=self.clock,
        )
        self.start_deadline = self._services.start_deadline

    def _network(self) -> NodeNetwork:
        settings = self.settings
        return NodeNetwork(
            self.keeper,
            pool=settings.pool,
            uplink=settings.uplink,
            mtu=settings.mtu,
            folder=self.folder,
            clock=self.clock,
        )

    def _names(self) -> Names:
        outside = self.settings.egress != "none" and self.settings.uplink
        return Names(self.keeper, self.folder / "names", egress=outside, clock=self.clock)

    # -- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        await super().start()
        self.inventory.leased_ips = len(self.settings.leased_ips)
        self.inventory.volume_bytes = self.parts.volumes.reserved_bytes
        self.inventory.update([this_machine(self.folder, self.settings)])
        if self.network is not None:
            self.network.restore(self.routes.ports.restore())
        started = self.spawn(self._services.serve(), name="parts")
        waiter = asyncio.ensure_future(self._services._started.wait())
        try:
            await asyncio.wait({started, waiter}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
        if started.done():
            started.result()
        self.runtime.on_exit(self._replica_exited)
        self.runtime.on_lost(self._look_again)
        for replica in await self.runtime.replicas():
            self.parts.marks.setdefault(str(replica.lease), replica.mark)

        self.spawn(self._expire_logs(), name="log retention")

    async def _expire_logs(self) -> None:
        """Logs outlive their lease by the retention, not longer."""
        while True:
            alive = {lease_name(lease) for lease in self._deployments}
            before = self.clock.now() - self.settings.log_retention
            await asyncio.to_thread(logs.expire, self.runtime.folder / "logs", alive, before)
            await self.clock.sleep(RETENTION_PERIOD)

    async def stop(self) -> None:
        """Let go of everything; workloads, ingress and names go on."""
        await self._let_go()
        await self._services.shutdown()

    @property
    def local_ingress_url(self) -> str:
        """The same, from this machine."""
        return f"http://127.0.0.1:{self.ingress.port}"

    @property
    def ingress_url(self) -> str:
        """Where ingress listens; a workload answers there to its own host name."""
        host = self.settings.public_host
        return f"http://{host}" if self.ingress.port == 80 else f"http://{host}:{self.ingress.port}"

    @property
    def addresses(self) -> NodePorts | None:
        """The leased addresses, if there are any to lease."""
        return self.routes.ports if self.settings.leased_ips else None

    def unsupported(self, group: ManifestGroup, leased: GroupSpec) -> list[Violation]:
        """Everything of ``group`` that cannot run here, with the reason."""
        return unsupported(group, len(self.settings.gpus), len(self.settings.leased_ips))

    def doctor(self) -> list[Check]:
        """What this machine lacks."""
        return doctor(self.settings, self.folder)

    # -- for tenants and operators ----------------------------------------------------------------

    async def status(self, lease: LeaseId) -> dict[str, Any]:
        """Services with wanted, available and used; health (None: unknown), URLs, last error."""
        deployment = self._deployments.get(lease)
        if deployment is None:
            if lease in self._broken:
                raise LeaseholdError("internal", self._broken[lease], kind=Kind.INTERNAL)
            raise not_found("deployment", str(lease))
        workload = deployment.wanted
        applied = deployment.applied
        try:
            replicas = await self.runtime.replicas(lease)
            reachable = True
        except LeaseholdError:
            replicas, reachable = [], False
        services: dict[str, Any] = {}
        for service in workload.services if workload else ():
            mine = [r for r in replicas if r.service == service.name]
            up = [r for r in mine if r.state.value == "running"]
            services[service.name] = {
                "name": service.name,
                "image": service.image,
                "total": service.count,
                "available": len(up) if reachable else None,
                "replicas": [self._replica_status(r) for r in mine],
            }
        health = deployment.health
        return {
            "lease": str(lease),
            "state": deployment.state.value,
            "hash": workload.hash if workload else "",
            "running_hash": applied.workload.hash if applied else "",
            "healthy": health.healthy if reachable else None,
            "reason": health.reason if reachable else "the runtime does not answer",
            "attempts_left": health.attempts_left,
            "services": services,
            "uris": self.routes.uris(workload) if workload else [],
            "ips": self.routes.leased_addresses(workload) if workload else {},
            "forwarded_ports": self.routes.node_ports(workload) if workload else [],
            "certificates": self._certificates(workload) if workload else {},
            "error": deployment.error.to_dict() if deployment.error else None,
        }

    def _certificates(self, workload: Workload) -> dict[str, Any]:
        """By host name, where this node serves HTTPS."""
        hosts = self.routes.hosts(workload)
        return self.certificates.status(hosts) if self.certificates is not None else {}

    def _replica_status(self, replica: Replica) -> dict[str, Any]:
        used = self.runtime.usage(replica) or cgroups.Usage()
        return {
            "number": replica.number,
            "key": replica.key,
            "revision": replica.revision,
            "state": replica.state.value,
            "started_at": replica.started_at,
            "ended": str(replica.ended) if replica.ended else None,
            "cpu_seconds": round(used.cpu_seconds, 3),
            "memory_bytes": used.memory_bytes,
            "pids": used.pids,
            "oom_kills": used.oom_kills,
        }

    def logs(
        self,
        lease: LeaseId,
        service: str | None = None,
        *,
        follow: bool = False,
        tail: int | None = None,
    ) -> logs.Lines:
        """Lines of a lease's replicas, oldest first; with ``follow`` also those to come.

        Following ends with the lease.
        ``tail`` keeps the last so many of each replica. Also after the lease has closed, within
        the retention.
        """
        deployment = self._deployments.get(lease)
        return logs.read(
            self.runtime.log_folder(lease),
            service,
            ended=deployment.gone if deployment is not None and follow else None,
            tail=tail,
        )

    async def search_logs(
        self, lease: LeaseId, service: str | None, text: str, limit: int
    ) -> list[Line]:
        """The newest ``limit`` lines that contain ``text``, oldest first."""
        folder = self.runtime.log_folder(lease)
        return await asyncio.to_thread(logs.search, folder, service, text, limit)

    async def exec(
        self,
        lease: LeaseId,
        service: str,
        command: Sequence[str],
        *,
        replica: int = 0,
        tty: bool = False,
        stdin: bool = False,
    ) -> Exec:
        """Run a command in a replica, with pipes or a terminal."""
        if not isinstance(self.runtime, OciRuntime):
            raise LeaseholdError(
                "exec_unsupported", "the process runtime has no inside", kind=Kind.UNSUPPORTED
            )
        mine = await self.runtime.replicas(lease)
        named = [r for r in mine if r.service == service]
        if not named:
            raise (
                not_found("service", service)
                if mine
                else not_found("running replica of lease", str(lease))
            )
        running = [r for r in named if r.number == replica and r.state is ReplicaState.RUNNING]
        if not running:
            raise not_found("running replica", f"{service}-{replica}")
        newest = max(running, key=lambda r: r.started_at)
        return await exec.start(self.runtime, newest.key, command, tty=tty, stdin=stdin)

    async def teardown_all(self) -> list[str]:
        """Remove every workload, ingress, names and network of this node; what was removed.

        The leases are not closed by it: a provider that starts again deploys them anew.
        """
        removed = []
        self.dismantled = True
        await self._let_go()
        for replica in await self.runtime.replicas():
            await self.runtime.remove_replica(replica.key)
            removed.append(f"replica {replica.key} of {replica.lease}")
        for lease in {LeaseId.parse(text) for text in self.parts.marks}:
            await self.routes.forget(lease)
            self.runtime.forget_lease(lease)
        await self.ingress.retire()
        removed.append(f"ingress on port {self.ingress.port}")
        if self.names is not None:
            await self.names.retire()
            removed.append("name server")
        if self.network is not None:
            await self.network.dismantle()
            removed.append(f"network {self.network.device}")
        cgroups.remove(self.settings.cgroup_parent)
        await self.keeper.retire(force=True)
        removed.append(f"keeper {self.keeper.pid}")
        for part in ("keeper", "ingress", "names", "oci", "process"):
            await asyncio.to_thread(shutil.rmtree, self.folder / part, True)
        self._deployments.clear()
        return removed
