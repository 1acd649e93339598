"""What manifest intake needs of others."""

from __future__ import annotations

from typing import Protocol

import msgspec

from leasehold.core.errors import Violation
from leasehold.model.manifest import ManifestGroup
from leasehold.model.market import DeploymentId, LeaseId
from leasehold.model.resources import GroupSpec

MANIFEST_TIMEOUT = 10003
"""Close reason: the tenant sent no manifest in time."""

ACTIVE = "active"
RECLAIMING = "reclaiming"


class MarketGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A group of a deployment as the market keeps it."""

    gseq: int
    spec: GroupSpec
    state: str = "open"


class MarketDeployment(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment as of ``height``. ``hash`` is the hex version hash of its manifest."""

    id: DeploymentId
    hash: str
    groups: list[MarketGroup]
    state: str = ACTIVE
    height: int = 0


class MarketLease(msgspec.Struct, frozen=True, kw_only=True):
    """A lease as of now. ``state`` is active, reclaiming, closed or insufficient_funds."""

    id: LeaseId
    state: str = ACTIVE
    denom: str = ""
    amount: str = "0"
    height: int = 0


class LeasePage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of leases; ``next`` asks for the one after it, empty at the end."""

    leases: list[MarketLease]
    next: str = ""


class Market(Protocol):
    """What the market says now. Kind UNAVAILABLE or TIMEOUT when it does not answer."""

    async def deployment(self, id: DeploymentId) -> MarketDeployment:
        """Kind NOT_FOUND when there is none."""
        ...

    async def leases(
        self, provider: str, deployment: DeploymentId | None = None, *, page: str = ""
    ) -> LeasePage:
        """Active and reclaiming leases of ``provider``, of one deployment or of all."""
        ...


class MarketWriter(Protocol):
    """What intake changes on the market."""

    async def close_bid(self, id: LeaseId, reason: int) -> None:
        """Close the provider's bid and with it the lease; returns once the market took it.

        Kind NOT_FOUND or CONFLICT when the bid is already closed; code
        ``reclamation_required`` (with ``retry_after``) while a reclamation window is open.
        """
        ...


class Capabilities(Protocol):
    """What the runtime can do."""

    def unsupported(self, group: ManifestGroup, leased: GroupSpec) -> list[Violation]:
        """Everything of ``group`` the runtime cannot do, with the reason; paths from the group."""
        ...


class Resolver(Protocol):
    """Looks up TXT records."""

    async def txt(self, name: str) -> list[str]:
        """The texts at ``name``, empty when there are none; UNAVAILABLE when DNS fails."""
        ...
