"""Comparing the log with the market's live leases, on start and every few minutes.

Makes up for what was missed: a lease the feed never reported is made known, a lease that lacks
the manifest its deployment already has is served. What the market does not list any more is left
to the feed, which replays blocks; only our memory of it ends when the log agrees.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.events.commands import Commands, Decision
from leasehold.manifest.live import LiveLeases
from leasehold.manifest.managers import Managers
from leasehold.manifest.ports import Market, MarketLease
from leasehold.manifest.settings import ManifestSettings
from leasehold.manifest.state import LeaseState
from leasehold.model.events.market import LeaseWon, Price
from leasehold.model.market import LeaseId

log = get_logger(__name__)


class Reconciler:
    """``live`` is the service's table of our leases and their watchdogs' times."""

    def __init__(
        self,
        market: Market,
        provider: str,
        clock: Clock,
        settings: ManifestSettings,
        *,
        managers: Managers,
        leases: Commands[LeaseState],
        live: LiveLeases,
        serve: Callable[[LeaseId], Awaitable[bool]],
        deadline: Callable[[LeaseState], float | None],
    ) -> None:
        self.market = market
        self.provider = provider
        self.clock = clock
        self.settings = settings
        self.managers = managers
        self.leases = leases
        self.live = live
        self.serve = serve
        self.deadline = deadline
        self._unknown_since: dict[LeaseId, float] = {}

    async def forever(self) -> None:
        """Reconcile now and again; a market that does not answer is tried next time."""
        while True:
            try:
                await self.once()
            except LeaseholdError as error:
                log.warning("reconcile.failed", code=error.code, error=error.message)
            await self.clock.sleep(self.settings.reconcile_s)

    async def once(self) -> None:
        """One comparison. Raises what the market raised."""
        found = await self._live_on_market()
        for lease in found:
            try:
                await self._lease(lease)
            except LeaseholdError as error:
                log.warning(
                    "reconcile.lease_failed",
                    lease=str(lease.id),
                    code=error.code,
                    error=error.message,
                )
        listed = {lease.id for lease in found}
        for id in [id for id in self.live if id not in listed]:
            state = await self.leases.state(str(id))
            if state.closed or state.won is None:
                self.live.drop(id)
        for id in [id for id in self._unknown_since if id not in listed]:
            del self._unknown_since[id]

    async def _live_on_market(self) -> list[MarketLease]:
        found: list[MarketLease] = []
        page = ""
        while True:
            try:
                async with self.clock.timeout(self.settings.query_timeout_s):
                    answer = await self.market.leases(self.provider, page=page)
            except TimeoutError:
                raise LeaseholdError(
                    "market_timeout",
                    f"the market did not answer within {self.settings.query_timeout_s:g} s",
                    kind=Kind.UNAVAILABLE,
                    retry_after=5.0,
                ) from None
            found += answer.leases
            page = answer.next
            if not page:
                return found

    async def _lease(self, lease: MarketLease) -> None:
        state = await self.leases.state(str(lease.id))
        if state.closed:
            self.live.drop(lease.id)
            return
        self.live.put(lease.id, self.deadline(state))
        if state.won is None:
            # The feed may only be late.
            now = self.clock.now()
            since = self._unknown_since.setdefault(lease.id, now)
            if now - since < self.settings.reconcile_grace_s:
                return
            await self._make_known(lease)
        self._unknown_since.pop(lease.id, None)
        if await self.serve(lease.id):
            log.info("reconcile.served", lease=str(lease.id))

    async def _make_known(self, lease: MarketLease) -> None:
        data = await self.managers.ensure(lease.id.deployment).data()
        won = LeaseWon(
            id=lease.id,
            price=Price(lease.denom, lease.amount),
            group=msgspec.to_builtins(data.groups[lease.id.gseq].spec),
            height=lease.height,
        )
        await self.leases.run(
            str(lease.id), lambda state: None if state.won or state.closed else Decision([won])
        )
        log.warning("reconcile.lease_made_known", lease=str(lease.id))
