"""What the market says, as the feed writes it on deployment, order and lease entities.

Groups and prices travel as the market's own JSON (``raw``), decoded by whoever needs them.
Heights are the block in which it happened.
"""

from __future__ import annotations

from typing import Any

import msgspec

from leasehold.model.events import payload
from leasehold.model.market import DeploymentId, GroupId, LeaseId, OrderId


class Price(msgspec.Struct, frozen=True):
    """``amount`` per block in decimal text (exact), in units of ``denom``."""

    denom: str
    amount: str


@payload("deployment.created")
class DeploymentCreated(msgspec.Struct, frozen=True, kw_only=True):
    id: DeploymentId
    hash: str  # hex of the manifest's version hash
    height: int


@payload("deployment.updated")
class DeploymentUpdated(msgspec.Struct, frozen=True, kw_only=True):
    id: DeploymentId
    hash: str
    height: int


@payload("deployment.closed")
class DeploymentClosed(msgspec.Struct, frozen=True, kw_only=True):
    id: DeploymentId
    height: int
    reason: int = 1


@payload("group.changed")
class GroupChanged(msgspec.Struct, frozen=True, kw_only=True):
    """``state`` is open, paused or closed."""

    id: GroupId
    state: str
    height: int


@payload("order.created")
class OrderCreated(msgspec.Struct, frozen=True, kw_only=True):
    id: OrderId
    height: int


@payload("order.closed")
class OrderClosed(msgspec.Struct, frozen=True, kw_only=True):
    id: OrderId
    height: int


@payload("bid.created")
class BidCreated(msgspec.Struct, frozen=True, kw_only=True):
    id: LeaseId
    price: Price
    height: int


@payload("bid.closed")
class BidClosed(msgspec.Struct, frozen=True, kw_only=True):
    id: LeaseId
    height: int
    reason: int = 0


@payload("bid.declined")
class BidDeclined(msgspec.Struct, frozen=True, kw_only=True):
    """We do not bid on this order, or no longer, and why."""

    id: OrderId
    code: str
    message: str


@payload("lease.created")
class LeaseCreated(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody's bid was accepted; ours when ``id.provider`` is us."""

    id: LeaseId
    price: Price
    height: int


@payload("lease.won")
class LeaseWon(msgspec.Struct, frozen=True, kw_only=True):
    """Our bid was accepted: the group that was leased, as the market keeps it."""

    id: LeaseId
    price: Price
    group: dict[str, Any]
    height: int


@payload("lease.reclaiming")
class LeaseReclaiming(msgspec.Struct, frozen=True, kw_only=True):
    """The provider gave notice: the lease ends at ``deadline`` (seconds UTC)."""

    id: LeaseId
    deadline: float
    height: int


@payload("lease.closed")
class LeaseClosed(msgspec.Struct, frozen=True, kw_only=True):
    """Reasons: 1 owner, 10000 unstable, 10001 decommission, 10002 unspecified,
    10003 manifest timeout, 20000 insufficient funds."""

    id: LeaseId
    height: int
    reason: int = 1
