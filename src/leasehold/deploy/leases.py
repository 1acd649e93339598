"""The leases a deploy system looks after: an activity that reads them, an actor for each.

:class:`DeployActivity` watches every lease on the log and does one thing: it tells the lease's
:class:`~leasehold.deploy.deployment.Deployment` what is wanted. :class:`Deployments` owns those
actors; what runs the workloads is the driver's affair (see :mod:`.service` for this machine and
:mod:`.kubernetes.service` for a cluster).
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, Violation
from leasehold.core.logs import get_logger
from leasehold.core.service import Service
from leasehold.deploy.deployment import Deployment
from leasehold.deploy.driver import Driver, Emit, History
from leasehold.deploy.inventory import Inventory
from leasehold.deploy.logs import Line
from leasehold.deploy.machine import State
from leasehold.deploy.node_ports import NodePorts
from leasehold.deploy.ports import LeaseMarket
from leasehold.deploy.replica import Replica
from leasehold.deploy.settings import DeploySettings
from leasehold.deploy.workload import Workload
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

DEPLOYMENTS = metrics.gauge("leasehold_deployments", "deployments on this node", ["state"])

log = get_logger(__name__)

Unseal = Callable[[dict[str, Any], str], ManifestGroup]


class DeployActivity(Reconciler):
    """What the events of one lease ask for."""

    name = "deploy"
    entity_kind = "lease"
    eager = True

    def __init__(self, context: Context, service: Deployments) -> None:
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
            news = self.service.driver.allow(lease, self.manifest.withheld, self.allowed)
            deployment = self.service.deployment(lease, self.history, self.context.emit)
            deployment.want(workload)
            if news:
                await deployment.point()
        return Outcome.SLEEP


class Deployments(Service):
    """Every deployment of one provider, in ``folder`` (absolute).

    ``market`` is told when a workload will not stay up (None: nobody is); ``unseal(group, lease)``
    opens the secrets of a manifest group kept on the log (None: they are not sealed). Constructing
    it registers its activity with ``engine``; it starts before the engine and stops after it.
    A subclass sets ``driver``.
    """

    driver: Driver

    def __init__(
        self,
        log: Log,
        engine: Engine,
        folder: Path,
        settings: DeploySettings | None,
        *,
        market: LeaseMarket | None,
        clock: Clock | None,
        unseal: Unseal | None,
    ) -> None:
        super().__init__("deploy", clock=clock)
        self.log = log
        self.folder = folder.absolute()
        self.settings = settings or DeploySettings()
        self.market = market
        self.unseal = unseal
        self.inventory = Inventory([])
        self.dismantled = False
        """Set by a teardown of everything: nothing is brought up again until the next start."""
        self._deployments: dict[LeaseId, Deployment] = {}
        self._broken: dict[LeaseId, str] = {}
        engine.register(lambda context: DeployActivity(context, self), kind=DeployActivity)

    async def start(self) -> None:
        self.folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.inventory.unavailable = (self.folder / PAUSED).read_text()

    @abstractmethod
    async def status(self, lease: LeaseId) -> dict[str, Any]: ...

    @abstractmethod
    def logs(
        self,
        lease: LeaseId,
        service: str | None = None,
        *,
        follow: bool = False,
        tail: int | None = None,
    ) -> AsyncIterator[Line]: ...

    @abstractmethod
    async def search_logs(
        self, lease: LeaseId, service: str | None, text: str, limit: int
    ) -> list[Line]: ...

    @abstractmethod
    async def exec(
        self,
        lease: LeaseId,
        service: str,
        command: Sequence[str],
        *,
        replica: int = 0,
        tty: bool = False,
        stdin: bool = False,
    ) -> Any: ...

    @abstractmethod
    async def teardown_all(self) -> list[str]: ...

    @property
    def addresses(self) -> NodePorts | None:
        """The leased addresses; None where there are none to lease."""
        return None

    @abstractmethod
    def unsupported(self, group: ManifestGroup, leased: GroupSpec) -> Sequence[Violation]: ...

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
            found = self._deployments[lease] = Deployment(lease, self.driver, history, emit)
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
        if self.market is None:
            raise LeaseholdError("no_market", "no market to close leases on", kind=Kind.UNSUPPORTED)
        closed = []
        for lease in sorted(self._deployments):
            await self.market.close_bid(lease, reason=DECOMMISSION)
            closed.append(str(lease))
        return closed

    async def workloads(self) -> list[dict[str, Any]]:
        """The status of every deployment."""
        return [await self.status(lease) for lease in sorted(self._deployments)]
