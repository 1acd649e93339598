"""Streams for whoever shows a changing picture: leases as they change, and which kinds have news.

Both are JSON lines. A list of leases begins with every lease and a line ``{}`` that says it is
whole; after that each line is a lease that changed. News say which kinds of
entities changed, gathered over a fifth of a second, so that a busy log costs a page no more than a
quiet one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec
from litestar import Request, Response, get
from litestar.handlers import BaseRouteHandler
from litestar.response import Stream

from leasehold.core.clock import Clock
from leasehold.events.event import Signal, Subscribed
from leasehold.events.log import Log
from leasehold.gateway.auth import any_tenant, operator, principal_of
from leasehold.gateway.claims import Principal
from leasehold.gateway.stories import Leases
from leasehold.model.market import LeaseId

GATHER = 0.2
"""Seconds news are gathered before they are told."""

IDLE = 30.0
"""Seconds after which a silent stream says that it lives."""

LINES = "application/x-ndjson"

Permit = Callable[[LeaseId], bool]


async def changes(log: Log, leases: Leases, prefix: str, permit: Permit) -> AsyncIterator[bytes]:
    """The lines of a living list of leases."""
    seen = await log.last_seq()
    for listed in await leases.list(prefix):
        if permit(LeaseId.parse(listed.lease)):
            yield msgspec.json.encode(listed) + b"\n"
    yield b"{}\n"
    async for signal in log.signals(seen):
        if isinstance(signal, Subscribed):
            if signal.seq <= seen:
                continue
            for listed in await leases.list(prefix):
                if permit(LeaseId.parse(listed.lease)):
                    yield msgspec.json.encode(listed) + b"\n"
        elif signal.entity.kind == "lease" and signal.entity.id.startswith(prefix):
            if not permit(LeaseId.parse(signal.entity.id)):
                continue
            for listed in await leases.list(signal.entity.id):
                yield msgspec.json.encode(listed) + b"\n"


async def news(log: Log, clock: Clock) -> AsyncIterator[bytes]:
    """Lines ``{"seq", "kinds"}``: how many signals each kind of entity had since the last one."""
    seen = await log.last_seq()
    waiting: dict[str, int] = {}
    some = asyncio.Event()

    async def listen() -> None:
        nonlocal seen
        async for signal in log.signals(seen):
            seen = max(seen, signal.seq)
            if isinstance(signal, Signal):
                waiting[signal.entity.kind] = waiting.get(signal.entity.kind, 0) + 1
                some.set()

    yield msgspec.json.encode({"seq": seen, "kinds": {}}) + b"\n"
    ear = asyncio.ensure_future(listen())
    ear.add_done_callback(lambda _: some.set())
    try:
        while not ear.done():
            try:
                async with clock.timeout(IDLE):
                    await some.wait()
                await clock.sleep(GATHER)
            except TimeoutError:
                pass
            line = msgspec.json.encode({"seq": seen, "kinds": waiting}) + b"\n"
            waiting.clear()
            some.clear()
            yield line
        ear.result()
    finally:
        ear.cancel()
        await asyncio.gather(ear, return_exceptions=True)


Volumes = Callable[[str], Awaitable[list[dict[str, Any]]]]
"""Lists the volumes at or below a global path."""


async def volume_lists(
    log: Log, clock: Clock, volumes: Volumes, owner: str
) -> AsyncIterator[bytes]:
    """Lines with the whole list of an owner's volumes, each time it is another one."""
    told = b""
    async for line in news(log, clock):
        kinds = msgspec.json.decode(line)["kinds"]
        if told and kinds.keys().isdisjoint(("repo", "registry", "workflow")):
            continue
        found = msgspec.json.encode(await volumes(f"leases/{owner}")) + b"\n"
        if found != told:
            told = found
            yield found


def routes(
    log: Log, provider: str, clock: Clock, volumes: Volumes | None = None
) -> Sequence[BaseRouteHandler]:
    """Every route of this area; those about volumes need ``volumes``."""
    leases = Leases(log)

    def permit_of(principal: Principal) -> Permit:
        def permit(lease: LeaseId) -> bool:
            return lease.provider == provider and lease.owner == principal.owner and (
                principal.services("status", lease.dseq, lease.gseq, lease.oseq) != set()
            )  # fmt: skip

        return permit

    @get("/leases", guards=[any_tenant], tags=["lease"], operation_id="ownLeases")
    async def own(request: Request[Any, Any, Any]) -> Response[bytes]:
        """The tenant's leases here with their state, oldest first."""
        principal = principal_of(request)
        permit = permit_of(principal)
        found = await leases.list(f"{principal.owner}/")
        mine = [listed for listed in found if permit(LeaseId.parse(listed.lease))]
        return Response(msgspec.json.encode(mine), media_type="application/json")

    @get("/leases/tail", guards=[any_tenant], tags=["lease"], operation_id="tailOwnLeases")
    async def own_tail(request: Request[Any, Any, Any], within: str = "") -> Stream:
        """The tenant's leases, then each again when it changes; one JSON line each.

        ``within`` is the beginning of ``dseq/gseq/oseq/``.
        """
        principal = principal_of(request)
        lines = changes(log, leases, f"{principal.owner}/{within}", permit_of(principal))
        return Stream(lines, media_type=LINES)

    @get("/v1/leases/tail", guards=[operator], tags=["operator"], operation_id="tailLeases")
    async def tail(prefix: str = "") -> Stream:
        """All leases (of a prefix), then each again when it changes; one JSON line each."""
        return Stream(changes(log, leases, prefix, lambda lease: True), media_type=LINES)

    @get("/v1/events/news", guards=[operator], tags=["events"], operation_id="eventsNews")
    async def any_news() -> Stream:
        """Which kinds of entities have news, at most five lines a second."""
        return Stream(news(log, clock), media_type=LINES)

    if volumes is None:
        return [own, own_tail, tail, any_news]
    listing = volumes

    @get("/volumes/tail", guards=[any_tenant], tags=["volumes"], operation_id="tailOwnVolumes")
    async def own_volumes(request: Request[Any, Any, Any]) -> Stream:
        """All of the tenant's volumes, again each time something about them changed."""
        owner = principal_of(request).owner
        return Stream(volume_lists(log, clock, listing, owner), media_type=LINES)

    return [own, own_tail, tail, any_news, own_volumes]
