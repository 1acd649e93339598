"""Deciding on a manifest, and making the decision durable.

The verdict is taken on data asked for anew when older data would refuse what is right. An accepted
manifest is kept on the deployment (who sent which hash when, its secrets sealed) and handed to
each live lease once per hash. Both are durable before the tenant is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError, Violation
from leasehold.core.logs import get_logger
from leasehold.events.commands import Commands, Decision
from leasehold.events.log import Log
from leasehold.manifest import checks, hostnames
from leasehold.manifest.hostnames import Hostnames
from leasehold.manifest.manager import Manager, MarketData
from leasehold.manifest.ports import Capabilities
from leasehold.manifest.settings import ManifestSettings
from leasehold.manifest.state import (
    DeploymentState,
    Kept,
    LeaseState,
    fold_deployment,
    fold_lease,
)
from leasehold.model.events.lease import ManifestReceived
from leasehold.model.events.manifest import ManifestAccepted
from leasehold.model.manifest import Manifest, ManifestGroup
from leasehold.model.market import DeploymentId, LeaseId
from leasehold.model.sealing import Vault

log = get_logger(__name__)

ACCEPTED = metrics.counter("leasehold_manifest_accepted_total", "manifests accepted")

Permit = Callable[[LeaseId], bool]
"""Whether the caller's token covers a lease."""


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted manifest: its hash, the leases it was handed to, and withheld host names."""

    hash: str
    leases: list[LeaseId]
    withheld: list[str] = []
    repeated: list[LeaseId] = []
    """Leases that already had this manifest and were not given it again."""


class Acceptance:
    """Judges and accepts. ``deployments`` and ``leases`` are the states everybody reads."""

    def __init__(
        self,
        log: Log,
        clock: Clock,
        *,
        provider: str,
        vault: Vault,
        settings: ManifestSettings,
        hostnames: Hostnames,
        capabilities: Capabilities | None = None,
    ) -> None:
        self.provider = provider
        self.vault = vault
        self.settings = settings
        self.hostnames = hostnames
        self.capabilities = capabilities
        self.deployments: Commands[DeploymentState] = Commands(
            log,
            clock,
            kind="deployment",
            initial=lambda _id: DeploymentState(),
            fold=fold_deployment(settings.keep_manifests),
        )
        self.leases: Commands[LeaseState] = Commands(
            log, clock, kind="lease", initial=lambda _id: LeaseState(), fold=fold_lease
        )

    async def submit(
        self,
        manager: Manager,
        manifest: Manifest,
        hash: str,
        sender: str,
        permit: Permit | None,
    ) -> Accepted:
        """Accept ``manifest`` (of version ``hash``) or raise everything that is against it."""
        data, stages = await self.judge(manager, manifest, hash, permit)
        if stages:
            raise checks.refusal(stages)
        conflicts = await self.host_conflicts(manifest, data)
        if conflicts:
            checks.REFUSED.labels("hostname_taken").inc()
            raise hostnames.refusal(conflicts)
        async with manager.lock:
            return await self._accept(manager.id, manifest, hash, data, sender)

    async def judge(
        self, manager: Manager, manifest: Manifest, hash: str, permit: Permit | None
    ) -> tuple[MarketData, list[checks.Stage]]:
        """The verdict, on data asked for anew when older data would refuse what is right."""
        begun = manager.serial
        data = await manager.data()
        expected = await self._expected(manager, data, known=True)
        if expected != hash or not data.leases:
            if data.serial <= begun:
                data = await manager.data(after=begun)
            expected = await self._expected(manager, data)
        if not data.leases:
            checks.REFUSED.labels("no_lease").inc()
            raise LeaseholdError(
                "no_lease",
                f"no lease for deployment {manager.id} at this provider",
                kind=Kind.NOT_FOUND,
                expected=f"an active lease with {self.provider}",
                got="none",
            )
        for lease in data.leases:
            if permit is not None and not permit(lease.id):
                raise LeaseholdError(
                    "lease_not_permitted",
                    f"the manifest is also for lease {lease.id}, which the token does not cover",
                    kind=Kind.FORBIDDEN,
                    got=lease.id,
                )
        verdict = (hash, expected, data.serial)
        if manager.passed == verdict:
            return data, []
        stages = checks.check(
            manifest,
            hash,
            expected,
            data,
            require_hosts=self.settings.require_hosts,
            blocked=self.settings.blocked_hosts,
            capabilities=self.capabilities,
        )
        if not stages:
            manager.passed = verdict
        return data, stages

    async def _expected(self, manager: Manager, data: MarketData, *, known: bool = False) -> str:
        """The hash to run; with ``known`` by the events known without reading, to begin with."""
        id = str(manager.id)
        state = (self.deployments.known(id) if known else None) or await self.deployments.state(id)
        deployment = data.deployment
        return checks.expected_hash(
            (state.height, state.hash), (deployment.height, deployment.hash.lower())
        )

    async def host_conflicts(self, manifest: Manifest, data: MarketData) -> list[Violation]:
        """Host names of our groups that the owner may not have."""
        hosts = [
            host
            for _, group in checks.local_groups(manifest, data)
            for host in group.ingress_hosts()
        ]
        return await self.hostnames.conflicts(hosts, data.deployment.id.owner) if hosts else []

    async def _accept(
        self, id: DeploymentId, manifest: Manifest, hash: str, data: MarketData, sender: str
    ) -> Accepted:
        positions = {group.name: at for at, group in enumerate(manifest)}
        given = {lease.id: positions[data.groups[lease.id.gseq].spec.name] for lease in data.leases}
        sealed: dict[int, dict[str, Any]] = {}

        def seal(at: int) -> dict[str, Any]:
            # Only when it is written: a manifest that is sent again is not.
            if at not in sealed:
                sealed[at] = self.vault.seal_group(manifest[at], str(id))
            return sealed[at]

        withheld: dict[LeaseId, list[str]] = {}
        lacking: list[LeaseId] = []
        for lease, at in list(given.items()):
            hosts = manifest[at].ingress_hosts()
            state = await self.leases.state(str(lease))
            if state.too_late:
                if len(given) == 1:
                    raise too_late(lease)
                del given[lease]
                continue
            if hosts or state.hosts:
                withheld[lease] = await self.hostnames.reserve(hosts, lease.group)
            if not state.needs_no(hash):
                lacking.append(lease)

        def accept(state: DeploymentState) -> Decision:
            # A repeat is audited, but its manifest is already there.
            known = state.newest is not None and state.newest.hash == hash
            return Decision(
                [
                    ManifestAccepted(
                        id=id,
                        hash=hash,
                        manifest=[] if known else [seal(at) for at in range(len(manifest))],
                        sender=sender,
                        leases=list(given),
                    )
                ]
            )

        # Both are durable before the tenant is answered. They share a commit; if only the first
        # lands, reconciling hands the manifest to the leases.
        audited = self.deployments.run(str(id), accept, optimistic=True)
        if lacking:
            _, *handed = await asyncio.gather(
                audited,
                *(
                    self._hand_over(
                        lease, hash, partial(seal, given[lease]), data, withheld.get(lease, [])
                    )
                    for lease in lacking
                ),
            )
            for lease, done in zip(lacking, handed, strict=True):
                if not done and (await self.leases.state(str(lease))).too_late:
                    raise too_late(lease)
        else:
            await audited
        ACCEPTED.inc()
        log.info("manifest.accepted", deployment=str(id), hash=hash, leases=len(given))
        return Accepted(
            hash=hash,
            leases=list(given),
            withheld=[host for hosts in withheld.values() for host in hosts],
            repeated=[lease for lease in given if lease not in lacking],
        )

    async def _hand_over(
        self,
        id: LeaseId,
        hash: str,
        group: Callable[[], dict[str, Any]],
        data: MarketData,
        withheld: list[str],
    ) -> bool:
        """``manifest.received`` once per (lease, hash); again only when that one failed."""

        def decide(state: LeaseState) -> Decision | None:
            if state.needs_no(hash):
                return None
            return Decision(
                [
                    ManifestReceived(
                        id=id,
                        hash=hash,
                        group=group(),
                        leased=msgspec.to_builtins(data.groups[id.gseq].spec),
                        withheld=withheld,
                    )
                ]
            )

        return bool(await self.leases.run(str(id), decide, optimistic=True))

    def open_kept(self, id: DeploymentId, kept: Kept) -> Manifest:
        """A kept manifest with its secrets."""
        return [self.vault.open_group(group, str(id)) for group in kept.manifest]

    def changes(
        self, manifest: Manifest, data: MarketData, state: DeploymentState
    ) -> dict[str, Any]:
        """What would become of the services that run now."""
        new = {
            f"{group.name}/{service.name}": service
            for _, group in checks.local_groups(manifest, data)
            for service in group.all_services
        }
        old = {}
        if state.newest is not None:
            local = {data.groups[lease.id.gseq].spec.name for lease in data.leases}
            old = {
                f"{group.name}/{service.name}": service
                for group in self.open_kept(data.deployment.id, state.newest)
                for service in group.all_services
                if group.name in local
            }
        return {
            "added": sorted(new.keys() - old.keys()),
            "dropped": sorted(old.keys() - new.keys()),
            "changed": sorted(n for n in new.keys() & old.keys() if new[n] != old[n]),
            "unchanged": sorted(n for n in new.keys() & old.keys() if new[n] == old[n]),
        }

    async def lacking(self, id: LeaseId) -> Kept | None:
        """The deployment's newest manifest if the lease does not have it."""
        deployment = await self.deployments.state(str(id.deployment))
        kept = deployment.newest
        if kept is None or deployment.closed:
            return None
        lease = await self.leases.state(str(id))
        no = lease.closed or lease.too_late or lease.received == kept.hash
        return None if no else kept

    async def serve(self, manager: Manager, id: LeaseId) -> bool:
        """Hand the newest kept manifest to a lease that lacks it; False when there is none.

        Called for a lease that is won later than its deployment's manifest was accepted, and when
        reconciling finds a lease that was not served.
        """
        kept = await self.lacking(id)
        if kept is None:
            return False
        begun = manager.serial
        data = await manager.data()
        if not await self._due(manager, data, id, kept.hash) and data.serial <= begun:
            data = await manager.data(after=begun)
        if not await self._due(manager, data, id, kept.hash):
            return False
        name = data.groups[id.gseq].spec.name
        group = next((g for g in kept.manifest if g["name"] == name), None)
        if group is None:
            return False
        hosts = msgspec.convert(group, ManifestGroup).ingress_hosts()
        withheld = await self.hostnames.reserve(hosts, id.group) if hosts else []
        async with manager.lock:
            return await self._hand_over(id, kept.hash, lambda: group, data, withheld)

    async def _due(self, manager: Manager, data: MarketData, id: LeaseId, hash: str) -> bool:
        """Whether the lease is live and ``hash`` is what its deployment wants to run."""
        live = any(lease.id == id for lease in data.leases)
        return live and await self._expected(manager, data) == hash


def too_late(lease: LeaseId) -> LeaseholdError:
    """The watchdog came first."""
    return LeaseholdError(
        "manifest_overdue",
        f"the time to send a manifest for lease {lease} ran out; its bid is being closed",
        kind=Kind.CONFLICT,
        got=lease,
    )
