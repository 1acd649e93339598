"""What the market needs of others, and what it offers behind an interface.

The index gives it blocks; the inventory says what fits; a market (our ledger's client is one) is
read and written. A writer for another chain is one more class.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from leasehold.model.chain import IndexedBlock
from leasehold.model.market import BidId, DeploymentId, LeaseId, OrderId
from leasehold.model.resources import Attribute, GroupSpec


class Blocks(Protocol):
    """The index, as the feed sees it."""

    def blocks(self, after_height: int) -> AsyncIterator[IndexedBlock]:
        """Every height after ``after_height`` once, in order, none skipped; waits for the next."""
        ...


class Inventory(Protocol):
    """What this provider can still serve."""

    async def reserve(self, order: OrderId, group: GroupSpec) -> None:
        """Keep room for a group. Doing it again for the same order changes nothing.

        LeaseholdError when it does not fit or this machine cannot serve it.
        """
        ...

    async def release(self, order: OrderId) -> None:
        """Give the room back; nothing happens when there is no reservation."""
        ...


class BidView(msgspec.Struct, frozen=True, kw_only=True):
    """A bid, or the lease it became, as of now. ``made`` is seconds UTC.

    A bid is open, active, lost or closed; a lease active, reclaiming, closed or insufficient_funds.
    """

    id: BidId
    state: str
    denom: str
    price: str
    made: float = 0.0


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """An order as of now, and the bid on it that was asked about.

    ``state`` is open, active or closed; ``reclamation_window`` the notice it asks for, seconds.
    """

    id: OrderId
    state: str
    group: GroupSpec
    reclamation_window: int = 0
    bid: BidView | None = None


class Funds(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment's funds as of now. ``seconds_left`` is None while nothing is being paid."""

    state: str
    funds: str
    seconds_left: float | None


class MarketReader(Protocol):
    """What the market says now. Kind UNAVAILABLE or TIMEOUT when it does not answer."""

    async def offer(self, id: BidId) -> Offer | None:
        """The order of a bid, together with the bid if it was made."""
        ...

    async def bid(self, id: BidId) -> BidView | None: ...

    async def funds(self, id: DeploymentId) -> Funds | None: ...

    async def audited(self, provider: str, auditor: str) -> Sequence[Attribute]:
        """The attributes of ``provider`` that ``auditor`` has signed."""
        ...

    def open_orders(self) -> AsyncIterator[OrderId]:
        """All orders that can be bid on, oldest first."""
        ...

    def open_bids(self, provider: str) -> AsyncIterator[BidView]:
        """Bids of ``provider`` that nobody accepted or refused yet."""
        ...

    def live_leases(self, provider: str) -> AsyncIterator[BidView]:
        """Leases of ``provider`` that are active or reclaiming."""
        ...


class MarketWriter(Protocol):
    """What a provider changes on the market. Every call returns once the market took it."""

    async def create_bid(
        self, order: OrderId, price: str, deposit: str, *, reclamation_window: int = 0
    ) -> object:
        """``price`` and ``deposit`` in base units of the market's denomination."""
        ...

    async def close_bid(self, id: BidId, reason: int) -> None:
        """Close a bid and its lease, if any. Closed already is success."""
        ...

    async def withdraw(self, id: LeaseId) -> object:
        """Take what a lease has earned."""
        ...
