"""The deploy system of one node, put together.

:class:`DeployActivity` watches every lease on the log and does one thing: it tells the lease's
:class:`~leasehold.deploy.deployment.Deployment` what is wanted. :class:`DeployService` owns those
actors and the parts they share. Stopping it leaves every workload running; the next one finds them
at the keeper and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, Violation, not_found
from leasehold.core.logs import get_logger
from leasehold.core.service import Group, Service
from leasehold.deploy import logs
from leasehold.deploy.deployment import Deployment, History
from leasehold.deploy.doctor import Check, doctor
from leasehold.deploy.ingress.haproxy import Ingress
from leasehold.deploy.inventory import Inventory, this_machine
from leasehold.deploy.keeper.client import KeeperClient
from leasehold.deploy.machine import State
from leasehold.deploy.net.names import Names
from leasehold.deploy.net.node import NODE, NodeNetwork
from leasehold.deploy.oci import cgroups, exec
from leasehold.deploy.oci.driver import OciRuntime
from leasehold.deploy.oci.exec import Exec
from leasehold.deploy.ports import Images, LeaseMarket, Volumes
from leasehold.deploy.process import ProcessRuntime
from leasehold.deploy.replica import Replica
from leasehold.deploy.replica import State as ReplicaState
from leasehold.deploy.rollout import Emit, Parts
from leasehold.deploy.routes import Routes
from leasehold.deploy.settings import DeploySettings
from leasehold.deploy.workload import Workload, lease_name, unsupported
from leasehold.events.event import Event
from leasehold.events.log import Log
from leasehold.model.events.lease import (
    DeployFailed,
    ManifestReceived,
    WorkloadHealthy,
    WorkloadRemoved,
    WorkloadRunning,
    WorkloadUnhealthy,
)
from leasehold.model.events.manifest import LeaseHostnames
from leasehold.model.events.market import LeaseClosed, LeaseWon
from leasehold.model.manifest import ManifestGroup
from leasehold.model.market import LeaseId
from leasehold.model.resources import GroupSpec
from leasehold.observe.activity import Context, Outcome, Reconciler
from leasehold.observe.engine import Engine

DECOMMISSION = 10001
"""The market's reason code for a lease given up because the provider stops serving."""

PAUSED = "paused"
"""File that holds the reason while no new orders are taken."""

RETENTION_PERIOD = 600.0
"""Seconds between looks for logs that have outlived their retention."""

DEPLOYMENTS = metrics.gauge("leasehold_deployments", "deployments on this node", ["state"])

log = get_logger(__name__)

Unseal = Callable[[dict[str, Any], str], ManifestGroup]


class DeployActivity(Reconciler):
    """What the events of one lease ask for."""

    name = "deploy"
    entity_kind = "lease"
    eager = True

    def __init__(self, context: Context, service: DeployService) -> None:
        super().__init__(context)
        self.service = service
        self.manifest: ManifestReceived | None = None
        self.manifests: dict[str, ManifestReceived] = {}
        self.closed = False
        self.removed = False
        self.running: WorkloadRunning | None = None
        self.won: LeaseWon | None = None
        self.allowed: list[str] | None = None
        self.history = History()

    def fold(self, event: Event) -> None:
        if not event.type.startswith(("deploy.", "manifest.", "lease.")):
            return
        fact = event.payload
        history = self.history
        if isinstance(fact, ManifestReceived):
            self.manifest = self.manifests[fact.hash] = fact
            self.allowed = None
        elif isinstance(fact, LeaseHostnames):
            self.allowed = fact.hosts
        elif isinstance(fact, LeaseWon):
            self.won = fact
        elif isinstance(fact, LeaseClosed):
            self.closed = True
        elif isinstance(fact, WorkloadRemoved):
            self.removed = True
        elif isinstance(fact, WorkloadRunning):
            self.running = fact
            if not history.hash:
                self._applied(fact.hash)
        elif isinstance(fact, WorkloadHealthy):
            self._applied(fact.hash)
            history.healthy, history.failed = True, ("", "")
        elif isinstance(fact, WorkloadUnhealthy):
            history.healthy = False
        elif isinstance(fact, DeployFailed):
            history.failed = (fact.hash, fact.code)

    def _applied(self, hash: str) -> None:
        """``hash`` is what requests go to; a version that never got there is forgotten again."""
        if self.running is not None and self.running.hash == hash:
            self.history.hash, self.history.revisions = hash, self.running.revisions
            self.history.digests = self.running.digests
        keep = {hash, self.manifest.hash if self.manifest else ""}
        self.manifests = {h: m for h, m in self.manifests.items() if h in keep}

    async def settle(self) -> Outcome:
        if self.service.dismantled:
            return Outcome.SLEEP
        lease = LeaseId.parse(self.entity.id)
        inventory = self.service.inventory
        if self.removed and self.closed:
            inventory.free(lease.order)
            return Outcome.DONE
        if self.closed:
            if self.manifest is None and not self.service.knows(lease):
                inventory.free(lease.order)
                return Outcome.DONE
            self.service.deployment(lease, self.history, self.context.emit).close()
            return Outcome.SLEEP
        if self.won is not None:
            inventory.allocate(lease.order, msgspec.convert(self.won.group, GroupSpec))
        if self.manifest is not None:
            applied = self.manifests.get(self.history.hash)
            if applied is not None and self.history.workload is None:
                self.history.workload = self.service.workload(lease, applied)
            workload = self.service.workload(lease, self.manifest)
            news = self.service.routes.allow(lease, self.manifest.withheld, self.allowed)
            deployment = self.service.deployment(lease, self.history, self.context.emit)
            deployment.want(workload)
            if news:
                await deployment.point()
        return Outcome.SLEEP


class DeployService(Service):
    """``folder`` (absolute) holds everything of the node's workloads; one provider a folder.

    ``images`` and ``volumes`` are where images and persistent volumes come from; ``market`` is
    told when a workload will not stay up (None: nobody is); ``unseal(group, lease)`` opens the
    secrets of a manifest group kept on the log (None: they are not sealed). Constructing it
    registers its activity with ``engine``; it starts before the engine and stops after it.
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
        super().__init__("deploy", clock=clock)
        self.unseal = unseal
        self.log = log
        self.folder = folder.absolute()
        self.settings = settings or DeploySettings()
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
            threads=settings.ingress_threads,
            maxconn=settings.ingress_maxconn,
            drain_seconds=settings.drain,
            clock=self.clock,
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
        self.inventory = Inventory([])
        self.dismantled = False
        """Set by :meth:`teardown_all`: nothing is brought up again until the next start."""
        self._deployments: dict[LeaseId, Deployment] = {}
        self._broken: dict[LeaseId, str] = {}
        self._services = Group(
            [
                part
                for part in (self.keeper, self.network, self.names, self.ingress, self.runtime)
                if part is not None
            ],
            "deploy parts",
            clock=self.clock,
        )
        self.start_deadline = self._services.start_deadline
        engine.register(lambda context: DeployActivity(context, self), kind=DeployActivity)

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
        self.folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.inventory.update([this_machine(self.folder, self.settings)])
        with contextlib.suppress(FileNotFoundError):
            self.inventory.unavailable = (self.folder / PAUSED).read_text()
        if self.network is not None:
            self.network.restore(self.routes.restore())
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

    async def _let_go(self) -> None:
        """End the actors, not what they look after."""
        actors = [t for t in self._spawned if t.get_name().startswith("deploy:lease ")]
        for actor in actors:
            actor.cancel()
        if actors:
            await asyncio.wait(actors)

    # -- deployments ------------------------------------------------------------------------------

    def workload(self, lease: LeaseId, manifest: ManifestReceived) -> Workload:
        """What a manifest asks to run, with its secrets opened."""
        group: Any = manifest.group
        if self.unseal is not None:
            group = msgspec.to_builtins(self.unseal(group, str(lease)))
        return Workload.of(lease, manifest.hash, group)

    def knows(self, lease: LeaseId) -> bool:
        return lease in self._deployments

    def deployment(self, lease: LeaseId, history: History, emit: Emit) -> Deployment:
        """The lease's actor, started when it is new."""
        found = self._deployments.get(lease)
        if found is None:
            found = self._deployments[lease] = Deployment(lease, self.parts, history, emit)
            self.spawn(self._act_out(found), name=f"lease {lease}")
        return found

    async def _act_out(self, deployment: Deployment) -> None:
        DEPLOYMENTS.labels("known").inc()
        try:
            await deployment.run()
        except Exception as error:
            # One lease's trouble is not the others': it is told, and the actor made anew at the
            # next news of its lease or the next start.
            log.exception("deployment.ended", lease=str(deployment.lease))
            self._broken[deployment.lease] = f"{type(error).__name__}: {error}"
            self._deployments.pop(deployment.lease, None)
        finally:
            DEPLOYMENTS.labels("known").dec()
            if deployment.state is State.TEARDOWN_COMPLETE:
                self._deployments.pop(deployment.lease, None)

    def _last_of(self, lease: LeaseId) -> bool:
        return not any(
            other != lease and other.deployment == lease.deployment for other in self._deployments
        )

    def _replica_exited(self, replica: Replica) -> None:
        deployment = self._deployments.get(replica.lease)
        if deployment is not None:
            deployment.replica_exited(replica)

    def _look_again(self) -> None:
        for deployment in self._deployments.values():
            deployment.look_again()

    @property
    def ingress_url(self) -> str:
        """Where ingress listens; a workload answers there to its own host name."""
        host = self.settings.public_host
        return f"http://{host}" if self.ingress.port == 80 else f"http://{host}:{self.ingress.port}"

    def unsupported(self, group: ManifestGroup, leased: GroupSpec) -> list[Violation]:
        """Everything of ``group`` that cannot run here, with the reason."""
        return unsupported(group)

    def doctor(self) -> list[Check]:
        """What this machine lacks."""
        return doctor(self.settings, self.folder)

    # -- for the operator -------------------------------------------------------------------------

    def offered(self) -> dict[str, Any]:
        """Nodes, what they offer, what is promised, and why nothing is offered if nothing is."""
        return self.inventory.to_dict()

    async def pause(self, reason: str) -> None:
        """Turn new orders away with ``reason``; what runs goes on. Holds over restarts."""
        (self.folder / PAUSED).write_text(reason)
        self.inventory.unavailable = reason

    async def resume(self) -> None:
        (self.folder / PAUSED).unlink(missing_ok=True)
        self.inventory.unavailable = ""

    async def drain(self, reason: str) -> list[str]:
        """Pause and give every lease up; their workloads go as the market closes them."""
        await self.pause(reason)
        if self.parts.market is None:
            raise LeaseholdError("no_market", "no market to close leases on", kind=Kind.UNSUPPORTED)
        closed = []
        for lease in sorted(self._deployments):
            await self.parts.market.close_bid(lease, reason=DECOMMISSION)
            closed.append(str(lease))
        return closed

    async def workloads(self) -> list[dict[str, Any]]:
        """The status of every deployment."""
        return [await self.status(lease) for lease in sorted(self._deployments)]

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
            "forwarded_ports": self.routes.node_ports(workload) if workload else [],
            "error": deployment.error.to_dict() if deployment.error else None,
        }

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
            raise not_found("service", service) if mine else not_found("lease", str(lease))
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
