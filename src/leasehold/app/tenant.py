"""The tenant's side: from an SDL file to a workload that answers.

Order on the market, wait for bids, accept the cheapest, send the manifest to the provider that won,
and follow the lease's timeline until it is healthy or failed. Each step is told to ``on_stage``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import msgspec

from leasehold.core.clock import Clock, SystemClock
from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.core.retry import Backoff, retrying
from leasehold.market.accounts import Key, sign_token
from leasehold.market.client import LedgerClient
from leasehold.model.manifest import Manifest, canonical
from leasehold.model.market import DeploymentId, LeaseId
from leasehold.model.sdl import SDL

BID_WAIT = 30.0
"""Seconds to wait for a bid before saying that nobody wants the order."""

COMPETITION = 1.0
"""Seconds the other providers of the market have for a bid once there is one."""

HEALTHY_WAIT = 600.0
"""Seconds to wait for a workload to answer."""

POLL_FIRST = 0.01
POLL_CAP = 0.25
"""Seconds between looks at the market for bids; grows from one to the other."""

PROVIDER_WAIT = 60.0
"""Seconds a provider that does not answer is asked again: it may be restarting."""

LONG_POLL = 20.0
"""Seconds the provider may hold a question for news of the timeline."""

_KINDS = {kind.http: kind for kind in reversed(Kind)}


class Stage(msgspec.Struct, frozen=True):
    """One step that was done. ``at`` is seconds UTC."""

    name: str
    at: float
    detail: str = ""


class Deployed(msgspec.Struct, frozen=True):
    """What came of it. ``state`` and ``steps`` are the provider's timeline."""

    lease: str
    provider_url: str
    state: str
    uris: list[str]
    steps: list[dict[str, Any]]
    unmet: str = ""


OnStage = Callable[[Stage], None]


class Tenant:
    """Deploys with ``key``'s account on the market at ``ledger_url``."""

    def __init__(self, key: Key, ledger_url: str, *, clock: Clock | None = None) -> None:
        self.key = key
        self.clock: Clock = clock or SystemClock()
        self.ledger = LedgerClient(ledger_url, key, clock=self.clock)
        self._http = httpx.AsyncClient(timeout=httpx.Timeout(10.0, read=130.0), trust_env=False)

    async def __aenter__(self) -> Tenant:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()
        await self.ledger.close()

    async def deploy(
        self,
        sdl: SDL,
        *,
        deposit: str = "5000000",
        on_stage: OnStage = lambda stage: None,
        wait: bool = True,
    ) -> list[Deployed]:
        """Deploy every group of ``sdl``; one result per lease, in order of groups."""

        def tell(name: str, detail: str = "") -> None:
            on_stage(Stage(name, self.clock.now(), detail))

        id = await self.ledger.create_deployment(sdl.groups(), sdl.hash, deposit)
        tell("order", str(id))
        leases = []
        for gseq in range(1, len(sdl.groups()) + 1):
            bid = await self.cheapest_bid(id, gseq)
            tell("bid", f"{bid['price']} {bid['denom']} a block from {_provider(bid)}")
            lease = LeaseId.parse(bid["id"])
            await self.ledger.create_lease(lease)
            tell("lease", str(lease))
            leases.append(lease)
        results = []
        for lease in leases:
            url = (await self.ledger.get("providers", lease.provider))["host_uri"]
            await self.send_manifest(url, lease, sdl.manifest())
            tell("manifest accepted", url)
            results.append(await self.follow(url, lease, on_stage, wait=wait))
        return results

    async def cheapest_bid(self, id: DeploymentId, gseq: int) -> dict[str, Any]:
        """The open bid with the lowest price; LeaseholdError ``no_bids`` after a while.

        Once there is one, the others have ``COMPETITION`` for theirs, unless all have bid.
        """
        pause, decide_at = POLL_FIRST, 0.0
        providers = len([provider async for provider in self.ledger.list("providers")])
        try:
            async with self.clock.timeout(BID_WAIT):
                while True:
                    bids = [
                        bid
                        async for bid in self.ledger.list(
                            "bids", owner=id.owner, dseq=id.dseq, gseq=gseq, oseq=1
                        )
                        if bid["state"] == "open"
                    ]
                    if bids and not decide_at:
                        decide_at = self.clock.monotonic() + COMPETITION
                    late = decide_at and self.clock.monotonic() >= decide_at
                    if len(bids) >= max(1, providers) or (bids and late):
                        return min(bids, key=lambda bid: (int_or_zero(bid["price"]), bid["id"]))
                    await self.clock.sleep(pause)
                    pause = min(POLL_CAP, pause * 1.5)
        except TimeoutError:
            raise LeaseholdError(
                "no_bids",
                f"nobody bid on {id} within {BID_WAIT:g} s: too large, priced too low, or asking "
                "for attributes no provider here has; the order stays open until "
                f"`leasehold deployment close {id.dseq}`",
                kind=Kind.TIMEOUT,
                got=str(id),
            ) from None

    async def send_manifest(self, url: str, lease: LeaseId, manifest: Manifest) -> None:
        """PUT the manifest; again while the provider has not noticed the lease yet."""
        pause = POLL_FIRST
        deadline = self.clock.monotonic() + BID_WAIT
        while True:
            try:
                await self._request(
                    "PUT", f"{url}/deployment/{lease.dseq}/manifest", content=canonical(manifest)
                )
                return
            except LeaseholdError as error:
                early = error.code in ("lease_not_found", "no_lease") or error.retry_after
                if not early or self.clock.monotonic() > deadline:
                    raise
                await self.clock.sleep(pause)
                pause = min(POLL_CAP, pause * 1.5)

    async def follow(
        self, url: str, lease: LeaseId, on_stage: OnStage, *, wait: bool = True
    ) -> Deployed:
        """Read the lease's timeline as it grows, until healthy, failed or closed."""
        told = 0
        story: dict[str, Any] = {}
        with contextlib.suppress(TimeoutError):
            async with self.clock.timeout(HEALTHY_WAIT):
                async for story in self.timeline(url, lease):
                    for step in story["steps"][told:]:
                        if step["type"].startswith("deploy."):
                            on_stage(Stage(step["name"], step["at"], _said(step)))
                    told = len(story["steps"])
                    if not wait or story["state"] in ("healthy", "failed", "closed"):
                        break
        return Deployed(
            str(lease), url, story["state"], story["uris"], story["steps"], story.get("unmet", "")
        )

    async def timeline(self, url: str, lease: LeaseId) -> AsyncIterator[dict[str, Any]]:
        """The provider's timeline of ``lease``, each time it has grown."""
        path = f"{url}/lease/{lease.dseq}/{lease.gseq}/{lease.oseq}/timeline"
        seen = 0
        while True:
            story = await self._request("GET", path, params={"after": seen, "wait": LONG_POLL})
            if len(story["steps"]) > seen or not seen:
                seen = len(story["steps"])
                yield story

    async def _request(self, method: str, url: str, **options: Any) -> Any:
        """Ask the provider; again while it does not answer, since every request may be repeated."""
        deadline = self.clock.monotonic() + PROVIDER_WAIT
        return await retrying(
            lambda: self._ask(method, url, **options),
            clock=self.clock,
            backoff=Backoff(first=0.1, cap=2.0),
            retry_on=lambda error: (
                isinstance(error, LeaseholdError)
                and error.code == "provider_unreachable"
                and self.clock.monotonic() < deadline
            ),
        )

    async def _ask(self, method: str, url: str, **options: Any) -> Any:
        headers = {
            "Authorization": f"Bearer {sign_token(self.key, self.clock.now())}",
            "Content-Type": "application/json",
            "Accept": "application/json",
        }
        try:
            response = await self._http.request(method, url, headers=headers, **options)
        except httpx.TransportError as error:
            raise unavailable(
                "provider_unreachable", f"the provider at {url} does not answer: {error}"
            ) from None
        if response.is_success:
            return response.json() if response.content else None
        try:
            body = response.json()
            body = body.get("error", body)
            code, message = str(body["code"]), str(body["message"])
        except (ValueError, KeyError, TypeError, AttributeError):
            body, code, message = {}, f"http_{response.status_code}", response.text.strip()
        raise LeaseholdError(
            code,
            message,
            kind=_KINDS.get(response.status_code, Kind.INTERNAL),
            path=body.get("path", ""),
            expected=body.get("expected"),
            got=body.get("got"),
            retry_after=body.get("retry_after"),
        )


async def first_answer(
    url: str, *, host: str = "", within: float = 30.0, clock: Clock | None = None
) -> tuple[float, str]:
    """Ask ``url`` until it answers 200; ``(seconds UTC of the answer, its text)``.

    ``host`` is the name to ask for, where the URL's own does not resolve to the provider.
    """
    clock = clock or SystemClock()
    headers = {"Host": host} if host else {}
    said = "nothing"
    async with httpx.AsyncClient(timeout=5.0, trust_env=False) as http:
        try:
            async with clock.timeout(within):
                while True:
                    try:
                        response = await http.get(url, headers=headers)
                        if response.status_code == httpx.codes.OK:
                            return clock.now(), response.text.strip()
                        said = f"HTTP {response.status_code}"
                    except httpx.TransportError as error:
                        said = str(error) or type(error).__name__
                    await asyncio.sleep(POLL_FIRST)
        except TimeoutError:
            raise LeaseholdError(
                "no_answer",
                f"{url} did not answer within {within:g} s, last: {said}",
                kind=Kind.TIMEOUT,
                got=said,
            ) from None


def int_or_zero(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _provider(bid: dict[str, Any]) -> str:
    return str(bid["id"]).rpartition("/")[2]


def _said(step: dict[str, Any]) -> str:
    detail = step.get("detail", {})
    return str(detail.get("message") or detail.get("reference") or detail.get("service") or "")
