"""What happens to manifests and host names."""

from __future__ import annotations

from typing import Any

import msgspec

from leasehold.model.events import payload
from leasehold.model.market import DeploymentId, LeaseId


@payload("manifest.accepted")
class ManifestAccepted(msgspec.Struct, frozen=True, kw_only=True):
    """On the deployment: who sent which hash; the whole manifest, its secrets sealed."""

    id: DeploymentId
    hash: str
    manifest: list[dict[str, Any]]
    sender: str
    leases: list[LeaseId]


@payload("manifest.overdue")
class ManifestOverdue(msgspec.Struct, frozen=True, kw_only=True):
    """On the lease: no manifest came in time. From here on none is accepted and the bid is being
    closed; whoever comes first on the lease, this or a manifest, has decided."""

    id: LeaseId


@payload("manifest.bid_closed")
class WatchdogClosedBid(msgspec.Struct, frozen=True, kw_only=True):
    """On the lease: no manifest came in time and its bid was closed. ``already`` by others."""

    id: LeaseId
    reason: int
    attempts: int
    already: bool = False


@payload("hostnames.changed")
class HostnamesChanged(msgspec.Struct, frozen=True, kw_only=True):
    """On ``hostnames:all``: what a group took (from whomever) and what it gave up."""

    group: str
    taken: list[str] = []
    released: list[str] = []


@payload("lease.hostnames")
class LeaseHostnames(msgspec.Struct, frozen=True, kw_only=True):
    """On the lease, after a transfer: the host names ingress may route to it from now on."""

    id: LeaseId
    hosts: list[str]
