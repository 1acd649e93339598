"""Routes that tell the story of leases: a tenant's own timeline, and for the operator every lease.

A timeline can be waited for: with ``after`` steps known the answer comes when there are more,
or when ``wait`` seconds are over.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get, post
from litestar.handlers import BaseRouteHandler
from litestar.params import QueryParameter
from litestar.response import Stream

from leasehold.core.clock import Clock
from leasehold.core.errors import not_found
from leasehold.events.event import Entity, WillBlock
from leasehold.events.log import Log
from leasehold.gateway.auth import operator, principal_of, tenant
from leasehold.gateway.manifests import Seq
from leasehold.gateway.ports import Workloads
from leasehold.gateway.settings import GatewaySettings
from leasehold.gateway.timeline import Timeline, timeline
from leasehold.model.market import LeaseId

LISTED = 10_000
"""Leases whose state is remembered between listings, by the head of their history."""

After = Annotated[int, QueryParameter(ge=0, description="steps already known")]
Wait = Annotated[float, QueryParameter(ge=0, le=600, description="longest wait for more, seconds")]
CloseBid = Callable[[LeaseId], Awaitable[None]]


class Listed(msgspec.Struct, frozen=True):
    """One line of a list of leases. ``at`` is when its newest event happened, seconds UTC."""

    lease: str
    state: str
    at: float
    uris: list[str] = []
    unmet: str = ""
    services: list[str] = []


class Leases:
    """Leases by their logs, for listings."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self._known: OrderedDict[str, tuple[str, Listed]] = OrderedDict()

    async def list(self, prefix: str = "") -> list[Listed]:
        """All leases whose id starts with ``prefix``, oldest first."""
        out = []
        heads = await self.log.entities("lease", prefix)
        for entity, head in sorted(heads, key=lambda item: item[1].seq):
            known = self._known.pop(entity.id, None)
            if known is None or known[0] != head.id:
                story = await timeline(self.log, LeaseId.parse(entity.id))
                at = story.steps[-1].at
                known = (
                    head.id,
                    Listed(entity.id, story.state, at, story.uris, story.unmet, story.services),
                )
            self._known[entity.id] = known
            out.append(known[1])
        while len(self._known) > LISTED:
            self._known.popitem(last=False)
        return out

    async def story(self, lease: LeaseId, after: int, wait: float, clock: Clock) -> Timeline:
        """The timeline, as soon as it has more than ``after`` steps or ``wait`` seconds passed."""
        # Where to watch from is noted before reading, so that nothing falls between the two.
        entity = Entity("lease", str(lease))
        head = await self.log.head(entity)
        found = await timeline(self.log, lease)
        if len(found.steps) > after or not wait:
            return found
        try:
            async with clock.timeout(wait):
                stream = self.log.read(entity, after=head.id if head else None, watch=True)
                async for event in stream:
                    if not isinstance(event, WillBlock):
                        break
        except TimeoutError:
            pass
        return await timeline(self.log, lease)


def routes(
    log: Log,
    provider: str,
    workloads: Workloads | None,
    close_bid: CloseBid,
    clock: Clock,
    settings: GatewaySettings,
) -> Sequence[BaseRouteHandler]:
    """``close_bid`` gives a lease up on the operator's word."""
    leases = Leases(log)

    @get(
        "/lease/{dseq:int}/{gseq:int}/{oseq:int}/timeline",
        guards=[tenant("status")],
        tags=["lease"],
        operation_id="leaseTimeline",
        summary="Everything that happened to a lease",
    )
    async def own(
        request: Request[Any, Any, Any],
        dseq: Seq,
        gseq: Seq,
        oseq: Seq,
        after: After = 0,
        wait: Wait = 0.0,
    ) -> Response[bytes]:
        """Its events from order to healthy, and what it waits for now."""
        lease = LeaseId(principal_of(request).owner, dseq, gseq, oseq, provider)
        return _json(await leases.story(lease, after, min(wait, settings.wait_max_s), clock))

    @get("/v1/leases", guards=[operator], tags=["operator"], operation_id="listLeases")
    async def every(prefix: str = "") -> Response[bytes]:
        """All leases of this provider with their state."""
        return _json(await leases.list(prefix))

    base = "/v1/leases/{owner:str}/{dseq:int}/{gseq:int}/{oseq:int}"

    @get(f"{base}/timeline", guards=[operator], tags=["operator"], operation_id="anyLeaseTimeline")
    async def any_timeline(
        owner: str, dseq: Seq, gseq: Seq, oseq: Seq, after: After = 0, wait: Wait = 0.0
    ) -> Response[bytes]:
        """As the tenant's own route, for any lease."""
        lease = LeaseId(owner, dseq, gseq, oseq, provider)
        return _json(await leases.story(lease, after, min(wait, settings.wait_max_s), clock))

    @get(f"{base}/status", guards=[operator], tags=["operator"], operation_id="anyLeaseStatus")
    async def any_status(owner: str, dseq: Seq, gseq: Seq, oseq: Seq) -> Response[bytes]:
        """Services, replicas and their use of the machine."""
        if workloads is None:
            raise not_found("workload", f"{owner}/{dseq}")
        return _json(await workloads.status(LeaseId(owner, dseq, gseq, oseq, provider)))

    @get(f"{base}/logs", guards=[operator], tags=["operator"], operation_id="anyLeaseLogs")
    async def any_logs(
        owner: str,
        dseq: Seq,
        gseq: Seq,
        oseq: Seq,
        service: str = "",
        follow: bool = False,
        tail: int = 100,
    ) -> Stream:
        """Lines of output as JSON lines ``{service, name, message, at}``."""
        if workloads is None:
            raise not_found("workload", f"{owner}/{dseq}")
        lease = LeaseId(owner, dseq, gseq, oseq, provider)
        wanted = [name for name in service.split(",") if name]
        lines = workloads.logs(lease, wanted, follow=follow, tail=tail)

        async def encoded() -> AsyncIterator[bytes]:
            async for line in lines:
                yield msgspec.json.encode(line) + b"\n"

        return Stream(encoded(), media_type="application/x-ndjson")

    @post(
        f"{base}/close",
        guards=[operator],
        status_code=200,
        tags=["operator"],
        operation_id="closeAnyLease",
    )
    async def close(owner: str, dseq: Seq, gseq: Seq, oseq: Seq) -> dict[str, str]:
        """Give the lease up: closes the provider's bid and with it the lease."""
        lease = LeaseId(owner, dseq, gseq, oseq, provider)
        await close_bid(lease)
        return {"closed": str(lease)}

    return [own, every, any_timeline, any_status, any_logs, close]


def _json(value: Any) -> Response[bytes]:
    return Response(msgspec.json.encode(value), media_type="application/json")
