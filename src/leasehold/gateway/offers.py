"""Routes for the operator of a provider: what is offered, pausing, resuming and draining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from litestar import get, post
from litestar.handlers import BaseRouteHandler

from leasehold.gateway.auth import operator


class Offers(Protocol):
    """What the deploy system does for the operator."""

    def offered(self) -> dict[str, Any]: ...

    async def pause(self, reason: str) -> None: ...

    async def resume(self) -> None: ...

    async def drain(self, reason: str) -> list[str]: ...

    async def workloads(self) -> list[dict[str, Any]]: ...


class Pause(msgspec.Struct, forbid_unknown_fields=True):
    """``reason`` is what bids are turned away with."""

    reason: str = "this provider is paused by its operator"


def routes(offers: Offers) -> Sequence[BaseRouteHandler]:
    """Every route of this area."""

    @get("/v1/inventory", guards=[operator], tags=["operator"], sync_to_thread=False)
    def inventory() -> dict[str, Any]:
        """Nodes, what they offer, and what is promised to bids and leases."""
        return offers.offered()

    @get("/v1/workloads", guards=[operator], tags=["operator"])
    async def list_workloads() -> list[dict[str, Any]]:
        """Every deployment of this node with its state, health and usage."""
        return await offers.workloads()

    @post("/v1/provider/pause", guards=[operator], tags=["operator"], status_code=200)
    async def pause(data: Pause) -> dict[str, Any]:
        """Make no new bids; leases go on. Holds over restarts."""
        await offers.pause(data.reason)
        return offers.offered()

    @post("/v1/provider/resume", guards=[operator], tags=["operator"], status_code=200)
    async def resume() -> dict[str, Any]:
        """Bid again."""
        await offers.resume()
        return offers.offered()

    @post("/v1/provider/drain", guards=[operator], tags=["operator"], status_code=200)
    async def drain(data: Pause) -> dict[str, list[str]]:
        """Pause, and close every lease as decommissioned; answers which."""
        return {"closed": await offers.drain(data.reason)}

    return [inventory, list_workloads, pause, resume, drain]
