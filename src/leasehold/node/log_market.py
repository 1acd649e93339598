"""The market as this provider's own log knows it: an implementation of the ``Market`` port.

Every lease won by the provider has an entity whose events tell its whole life, market side and
deployed side. Folding them needs no other system. A lease whose history cannot be read is listed
with unknown state; the decider then leaves its worker alone.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from leasehold.core.errors import LeaseholdError
from leasehold.events.event import Entity, Event, WillBlock
from leasehold.events.log import Log
from leasehold.node.ports import LeaseView

KIND = "lease"
REMEMBERED = 10_000
"""Leases whose view is kept by the head of their history."""

CLOSED_LISTED = 1000
"""Closed leases that are still listed, newest first: those a worker may not have heard of."""


class LogMarket:
    """``provider``: only leases of this provider's address; empty for all."""

    def __init__(self, log: Log, provider: str = "") -> None:
        self.log = log
        self.provider = provider
        self._known: OrderedDict[str, tuple[str, LeaseView]] = OrderedDict()

    async def leases(self) -> list[LeaseView] | None:
        """Every lease that was won; None when the log does not answer."""
        try:
            heads = await self.log.entities(KIND)
        except LeaseholdError:
            return None
        newest = sorted(heads, key=lambda item: item[1].seq, reverse=True)
        out: list[LeaseView] = []
        closed = 0
        for entity, head in newest:
            if self.provider and not entity.id.endswith(f"/{self.provider}"):
                continue
            view = await self._view(entity, head.id)
            if view is None:
                continue
            if view.state == "closed":
                closed += 1
                if closed > CLOSED_LISTED:
                    continue
            out.append(view)
        return out

    async def lease(self, id: str) -> LeaseView | None:
        """One lease; None when it was never won here."""
        entity = Entity(KIND, id)
        head = await self.log.head(entity)
        return None if head is None else await self._view(entity, head.id)

    async def _view(self, entity: Entity, head: str) -> LeaseView | None:
        known = self._known.get(entity.id)
        if known is not None and known[0] == head:
            self._known.move_to_end(entity.id)
            return known[1]
        view: LeaseView | None = None
        try:
            async for event in self.log.read(entity):
                if not isinstance(event, WillBlock):
                    view = fold(view, event)
        except LeaseholdError:
            return LeaseView(id=entity.id, state=None)
        if view is None:
            return None
        self._known[entity.id] = (head, view)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return view


def fold(view: LeaseView | None, event: Event) -> LeaseView | None:
    """The view after ``event``; None until the lease was won."""
    if event.type == "lease.won" or (view is None and event.type == "lease.created"):
        return LeaseView(id=event.entity.id, state="active", deployed="absent")
    if view is None:
        return None

    def changed(**fields: str | None) -> LeaseView:
        return msgspec.structs.replace(view, **fields)

    match event.type:
        case "lease.reclaiming":
            return changed(state="reclaiming")
        case "lease.closed":
            return changed(state="closed")
        case "manifest.received":
            return changed(manifest=event.payload.hash)
        case "deploy.running":
            return changed(deployed="running", running=event.payload.hash)
        case "deploy.healthy":
            return changed(deployed="healthy", running=event.payload.hash)
        case "deploy.unhealthy":
            return changed(deployed="unhealthy", running=event.payload.hash)
        case "deploy.failed":
            return changed(deployed=view.deployed if view.running else "failed")
        case "deploy.removed":
            return changed(deployed="absent", running=None)
    return view
