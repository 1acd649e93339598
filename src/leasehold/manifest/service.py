"""Manifest intake: the tenant's side of a won lease.

A PUT is a command. It waits for market data if what is known is old, decides at once, and when it
says yes the acceptance and the manifest of every local lease are durable. What follows (deploying,
the watchdog) are activities on those events.

After a restart everything is folded from the log; on start and every few minutes what the log says
is compared with the market's live leases, and what is missing is made up for.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, not_found
from leasehold.core.retry import Backoff
from leasehold.core.service import Service, State, not_running
from leasehold.events.commands import Decision
from leasehold.events.event import Entity, Event
from leasehold.events.log import Log
from leasehold.manifest.acceptance import Acceptance, Accepted, Permit
from leasehold.manifest.bus import Bus
from leasehold.manifest.hostnames import Hostnames
from leasehold.manifest.intake import LeaseIntake, Ports
from leasehold.manifest.limits import OwnerRate
from leasehold.manifest.live import LiveLeases
from leasehold.manifest.manager import Manager
from leasehold.manifest.managers import Managers, Working
from leasehold.manifest.ports import Capabilities, Market, MarketWriter, Resolver
from leasehold.manifest.reconcile import Reconciler
from leasehold.manifest.settings import ManifestSettings
from leasehold.manifest.state import LeaseState, fold_lease
from leasehold.model.events.lease import ManifestReceived
from leasehold.model.events.manifest import LeaseHostnames
from leasehold.model.manifest import Manifest, ManifestGroup
from leasehold.model.market import DeploymentId, GroupId, LeaseId
from leasehold.model.sealing import Vault
from leasehold.observe.engine import Engine

SECONDS = metrics.histogram("leasehold_manifest_submit_seconds", "time from a PUT to its verdict")

FINAL = ("healthy", "failed")
"""Phases of a manifest after which nothing more is waited for."""


class ManifestService(Service):
    """Give it the log, the engine (before it starts) and the market; start it before the engine."""

    def __init__(
        self,
        log: Log,
        engine: Engine,
        market: Market,
        writer: MarketWriter,
        *,
        provider: str,
        vault: Vault,
        settings: ManifestSettings | None = None,
        clock: Clock | None = None,
        capabilities: Capabilities | None = None,
        resolver: Resolver | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        super().__init__("manifest", clock=clock)
        self.settings = settings = settings or ManifestSettings()
        self.log = log
        self.provider = provider
        self.vault = vault
        backoff = backoff or Backoff(first=0.1, cap=60.0)
        self.bus = Bus(log, clock=self.clock)
        self.hostnames = Hostnames(
            log,
            self.clock,
            blocklist=settings.blocked_hosts,
            resolver=(resolver or _dns()) if settings.dns_proof else None,
            proof_prefix=settings.dns_proof_prefix,
        )
        self.acceptance = Acceptance(
            log,
            self.clock,
            provider=provider,
            vault=vault,
            settings=settings,
            hostnames=self.hostnames,
            capabilities=capabilities,
        )
        self.live = LiveLeases()
        self.managers = Managers(
            market,
            provider,
            self.clock,
            settings,
            lambda coro: self.spawn(coro, name="fetch"),
            backoff,
        )
        self.reconciler = Reconciler(
            market,
            provider,
            self.clock,
            settings,
            managers=self.managers,
            leases=self.acceptance.leases,
            live=self.live,
            serve=self._serve_lease,
            deadline=self.deadline,
        )
        self._rate = OwnerRate(settings.owner_rate, settings.owner_burst)
        ports = Ports(
            provider=provider,
            writer=writer,
            settings=settings,
            backoff=backoff,
            serve=self._serve_lease,
            closed=self._lease_closed,
        )
        engine.register(lambda context: LeaseIntake(context, ports), kind=LeaseIntake)

    async def start(self) -> None:
        bus = self.spawn(self.bus.serve(), name="bus")
        started = asyncio.ensure_future(self.bus._started.wait())
        await asyncio.wait({bus, started}, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        self._subscription = self.bus.subscribe()
        self.spawn(self._follow(), name="follow")
        self.spawn(self.managers.linger(), name="linger")
        self.spawn(self.reconciler.forever(), name="reconcile")

    async def stop(self) -> None:
        self._subscription.close()
        await self.bus.shutdown()

    # What tenants ask for

    async def submit(
        self,
        owner: str,
        dseq: int,
        body: bytes,
        *,
        sender: str = "",
        permit: Permit | None = None,
    ) -> Accepted:
        """Accept the manifest in ``body`` (JSON) for the deployment, or say why not.

        ``sender`` is kept in the audit event (default: the owner). ``permit`` says which leases
        the caller may send to. Durable when it returns.
        """
        began = self.clock.monotonic()
        try:
            async with self._working(owner, dseq) as manager:
                manifest, hash = manager.decode(body)
                return await self._accepted(manager, manifest, hash, sender or owner, permit)
        finally:
            SECONDS.observe(self.clock.monotonic() - began)

    async def _accepted(
        self,
        manager: Manager,
        manifest: Manifest,
        hash: str,
        sender: str,
        permit: Permit | None,
    ) -> Accepted:
        accepted = await self.acceptance.submit(manager, manifest, hash, sender, permit)
        for lease in accepted.leases:
            self.live.put(lease, None)
        return accepted

    async def validate(
        self, owner: str, dseq: int, body: bytes, *, permit: Permit | None = None
    ) -> dict[str, Any]:
        """What :meth:`submit` would say, without changing anything.

        Also whether its hash is on the market (``on_market``; a manifest may be tried before it
        is), and which services would be added, dropped and changed.
        """
        async with self._working(owner, dseq) as manager:
            manifest, hash = manager.decode(body)
            data, stages = await self.acceptance.judge(manager, manifest, hash, permit)
            taken = await self.acceptance.host_conflicts(manifest, data)
            state = await self.acceptance.deployments.state(str(manager.id))
        other = [stage for stage in stages if stage.code != "manifest_version"]
        violations = [v for stage in other for v in stage.violations] + taken
        return {
            "valid": not violations,
            "hash": hash,
            "on_market": len(other) == len(stages),
            "leases": [str(lease.id) for lease in data.leases],
            "violations": [msgspec.to_builtins(v) for v in violations],
            "changes": self.acceptance.changes(manifest, data, state),
        }

    async def rollback(
        self,
        owner: str,
        dseq: int,
        hash: str,
        *,
        sender: str = "",
        permit: Permit | None = None,
    ) -> Accepted:
        """Accept a kept manifest again. The deployment's hash on the market must be its hash."""
        async with self._working(owner, dseq) as manager:
            state = await self.acceptance.deployments.state(str(manager.id))
            kept = next((k for k in state.kept if k.hash.startswith(hash.lower())), None)
            if kept is None or not hash:
                raise not_found("kept manifest", hash, hint="See `leasehold lease history`.")
            manifest = self.acceptance.open_kept(manager.id, kept)
            return await self._accepted(manager, manifest, kept.hash, sender or owner, permit)

    async def history(self, owner: str, dseq: int) -> list[dict[str, Any]]:
        """Kept manifests, newest first: hash, who sent it, when (seconds UTC), images."""
        state = await self.acceptance.deployments.state(f"{owner}/{dseq}")
        return [
            {
                "hash": kept.hash,
                "sender": kept.sender,
                "at": kept.at,
                "current": kept is state.newest,
                "images": {
                    service["name"]: service["image"]
                    for group in kept.manifest
                    for service in group.get("services") or ()
                },
            }
            for kept in reversed(state.kept)
        ]

    async def kept(
        self, owner: str, dseq: int, hash: str, *, secrets: bool = True
    ) -> list[ManifestGroup | dict[str, Any]]:
        """The groups of an accepted manifest; without ``secrets`` as they are kept, sealed."""
        id = DeploymentId(owner, dseq)
        state = await self.acceptance.deployments.state(str(id))
        found = next((k for k in state.kept if k.hash.startswith(hash.lower())), None)
        if found is None or not hash:
            raise not_found("kept manifest", hash, hint="See `leasehold manifest history`.")
        return list(self.acceptance.open_kept(id, found) if secrets else found.manifest)

    async def manifest(self, id: LeaseId) -> tuple[str, ManifestGroup]:
        """Hash and manifest group of a lease as it was accepted; NOT_FOUND when there is none."""
        received: ManifestReceived | None = None
        async for event in self.log.read(Entity("lease", str(id))):
            if isinstance(event, Event) and event.type == "manifest.received":
                received = event.payload
        if received is None:
            raise not_found("manifest", str(id), hint="None was accepted for this lease.")
        return received.hash, self.vault.open_group(received.group, str(id))

    async def lease(self, id: LeaseId) -> LeaseState:
        """What intake knows of a lease; NOT_FOUND when it never heard of it."""
        state = await self.acceptance.leases.state(str(id))
        if state.won is None and not state.received:
            raise not_found("lease", str(id))
        return state

    def deadline(self, state: LeaseState) -> float | None:
        """When a lease's bid is closed for want of a manifest (seconds UTC)."""
        if state.won is None or state.received or state.closed or not self.settings.watchdog_s:
            return None
        return state.won_at + self.settings.watchdog_s

    async def is_active(self, owner: str, dseq: int) -> bool:
        """Whether we hold a live lease of the deployment or are working on it."""
        self._require_running()
        id = DeploymentId(owner, dseq)
        return id in self.managers or self.live.has_deployment(id)

    def status(self) -> dict[str, Any]:
        """Deployments with a live lease, and leases that wait for their manifest."""
        self._require_running()
        return {
            "deployments": self.live.deployments,
            "waiting": self.live.waiting,
            "next_deadline": self.live.next_deadline(),
        }

    async def outcome(self, id: LeaseId, hash: str, *, timeout: float) -> LeaseState:
        """Wait until the manifest ``hash`` of a lease is healthy, failed or replaced.

        Returns the state after at most ``timeout`` seconds, whatever it is by then.
        """
        state = LeaseState()
        try:
            async with self.clock.timeout(timeout):
                async for event in self.log.read(Entity("lease", str(id)), watch=True):
                    if isinstance(event, Event):
                        state = fold_lease(state, event)
                    elif state.closed or state.received != hash or state.phase in FINAL:
                        break
        except TimeoutError:
            pass
        return state

    async def reconcile(self) -> None:
        """Compare the log with the market now."""
        await self.reconciler.once()

    async def transfer_hostnames(
        self, owner: str, dseq: int, gseq: int, hosts: list[str]
    ) -> list[str]:
        """Move host names the owner's other groups hold to this one; tells both leases."""
        target = GroupId(owner, dseq, gseq)
        _lease, group = await self.destination(target)
        wanted = {host.lower() for host in group.ingress_hosts()}
        missing = [host for host in hosts if host.lower() not in wanted]
        if missing:
            raise LeaseholdError(
                "host_not_in_manifest",
                f"the manifest of {target} does not ask for {', '.join(missing)}",
                kind=Kind.MALFORMED,
                expected=", ".join(sorted(wanted)),
                got=", ".join(missing),
            )
        before = {host: await self.hostnames.holder(host) for host in hosts}
        moved = await self.hostnames.transfer(hosts, target)
        for id in {target, *(group for group in before.values() if group is not None)}:
            holder = self.live.of_group(id)
            if holder is not None:
                await self._tell_hosts(holder)
        return moved

    async def destination(self, target: GroupId) -> tuple[LeaseId, ManifestGroup]:
        """The live lease of a group and what runs there; MALFORMED when there is none."""
        self._require_running()
        lease = self.live.of_group(target)
        if lease is None:
            raise LeaseholdError(
                "no_destination",
                f"no active lease of {target} at this provider",
                kind=Kind.MALFORMED,
                got=target,
            )
        return lease, (await self.manifest(lease))[1]

    async def _tell_hosts(self, lease: LeaseId) -> None:
        hosts = await self.hostnames.held_by(lease.group)
        await self.acceptance.leases.run(
            str(lease),
            lambda state: (
                None if state.closed else Decision([LeaseHostnames(id=lease, hosts=hosts)])
            ),
        )

    def _working(self, owner: str, dseq: int) -> Working:
        self._require_running()
        if not self._rate.allow(owner, self.clock.monotonic()):
            raise LeaseholdError(
                "too_many_manifests",
                f"{owner} sends more than {self.settings.owner_rate:g} manifests a second",
                kind=Kind.RATE_LIMITED,
                retry_after=1.0,
            )
        return self.managers.working(DeploymentId(owner, dseq))

    # What the log and the market say

    async def _serve_lease(self, id: LeaseId) -> bool:
        if self.state is not State.RUNNING or await self.acceptance.lacking(id) is None:
            return False  # when not running, reconciling at the next start does it
        return await self.acceptance.serve(self.managers.ensure(id.deployment), id)

    async def _lease_closed(self, id: LeaseId) -> None:
        self.live.drop(id)
        if self.live.of_group(id.group) is None:
            await self.hostnames.release(id.group)

    async def _follow(self) -> None:
        """Keep what is held in memory in step with the events."""
        async for event in self._subscription:
            if event.entity.kind == "deployment":
                self._deployment_event(event)
            elif event.entity.kind == "lease":
                self._lease_event(event)

    def _deployment_event(self, event: Event) -> None:
        manager = self.managers.get(DeploymentId.parse(event.entity.id))
        if manager is None:
            return
        if event.type in ("deployment.updated", "deployment.created"):
            manager.invalidate()
        elif event.type == "deployment.closed":
            manager.invalidate()
            self.managers.drop(manager)

    def _lease_event(self, event: Event) -> None:
        id = LeaseId.parse(event.entity.id)
        if id.provider != self.provider:
            return
        match event.type:
            case "lease.won":
                timeout = self.settings.watchdog_s
                if id not in self.live:
                    self.live.put(id, event.at + timeout if timeout else None)
            case "manifest.received":
                self.live.put(id, None)
                return
            case "lease.closed" | "manifest.bid_closed":
                self.live.drop(id)
            case "lease.reclaiming":
                pass
            case _:
                return
        manager = self.managers.get(id.deployment)
        if manager is not None:
            manager.invalidate()

    def _require_running(self) -> None:
        if self.state is not State.RUNNING or self.stopping:
            raise not_running(self.name)


def _dns() -> Resolver:
    # Only providers that ask for proof need the library.
    from leasehold.manifest.proof import DnsResolver

    return DnsResolver()
