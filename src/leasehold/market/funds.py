"""Funds: does the tenant still pay, and taking what was earned.

One activity a lease of this provider. It looks at the deployment's escrow when the lease is new,
then again when the money would be gone, at the latest after ``funds_check_s``. An escrow that ran
dry gets a withdrawal: on a chain where closing it takes a transaction, that is the transaction.
Apart from that everything earned is withdrawn once a day. A market that does not answer is asked
again in a minute and changes nothing: unknown is not bankrupt.

Times are kept in the log's timers, so a restart neither forgets a withdrawal nor repeats it early.
"""

from __future__ import annotations

import random
from typing import ClassVar

import msgspec

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.events.event import Event
from leasehold.market.ports import MarketReader, MarketWriter
from leasehold.market.settings import MarketSettings
from leasehold.model.events import market as e
from leasehold.model.market import LeaseId
from leasehold.observe.activity import Context, Outcome, Reconciler

log = get_logger(__name__)

WITHDRAWALS = metrics.counter("leasehold_market_withdrawals_total", "withdrawals", ["outcome"])

RETRY_S = 60.0
"""Seconds until a market that did not answer is asked again."""

SPREAD_S = 60.0
"""Leases known from before a start are looked at within so many seconds, at random."""


class Funds:
    """What the monitors of one provider share.

    Register with ``engine.register(funds.activity, kind=FundsActivity)``.
    """

    def __init__(
        self,
        provider: str,
        reader: MarketReader,
        writer: MarketWriter,
        *,
        clock: Clock,
        settings: MarketSettings | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.provider = provider
        self.reader = reader
        self.writer = writer
        self.clock = clock
        self.settings = settings or MarketSettings()
        self.rng = rng or random.Random()
        self.started = clock.now()

    def activity(self, context: Context) -> FundsActivity:
        return FundsActivity(context, self)


class _Folded(msgspec.Struct, array_like=True):
    """``since`` is when the lease was won, seconds UTC; 0 while it is not."""

    since: float = 0.0
    closed: bool = False
    armed: bool = False


class FundsActivity(Reconciler):
    """Watches one lease from ``lease.won`` to ``lease.closed``."""

    name: ClassVar[str] = "market-funds"
    entity_kind: ClassVar[str] = "lease"

    def __init__(self, context: Context, funds: Funds) -> None:
        super().__init__(context)
        self.funds = funds
        self.lease = LeaseId.parse(context.entity.id)
        self.folded = _Folded()

    def fold(self, event: Event) -> None:
        if event.type == "lease.won":
            self.folded.since = event.at
        elif event.type == "lease.closed":
            said: e.LeaseClosed = event.payload
            self.folded.closed = said.id == self.lease

    def save(self) -> bytes:
        return msgspec.json.encode(self.folded)

    def restore(self, state: bytes) -> None:
        self.folded = msgspec.json.decode(state, type=_Folded)

    async def settle(self) -> Outcome:
        if self.lease.provider != self.funds.provider:
            return Outcome.DONE
        if self.folded.closed:
            await self.context.arm("check", None)
            await self.context.arm("withdraw", None)
            return Outcome.DONE
        if self.folded.since and not self.folded.armed:
            now = self.funds.clock.now()
            fresh = self.folded.since >= self.funds.started
            await self.context.arm(
                "check", now if fresh else now + self.funds.rng.uniform(0, SPREAD_S)
            )
            await self.context.arm("withdraw", now + self.funds.settings.withdrawal_s)
            self.folded.armed = True
        return Outcome.SLEEP

    async def fired(self, timer: str) -> Outcome:
        try:
            if timer == "withdraw":
                wait = await self._withdraw_daily()
            else:
                wait = await self._check()
        except LeaseholdError as error:
            if error.kind not in (Kind.UNAVAILABLE, Kind.TIMEOUT, Kind.INTERNAL):
                raise
            log.info("funds.unknown", lease=str(self.lease), why=error.message)
            wait = RETRY_S
        await self.context.arm(timer, self.funds.clock.now() + wait)
        return Outcome.SLEEP

    async def _withdraw_daily(self) -> float:
        await self._withdraw()
        return self.funds.settings.withdrawal_s

    async def _check(self) -> float:
        """Look at the escrow; answers seconds until the next look."""
        longest = self.funds.settings.funds_check_s
        funds = await self.funds.reader.funds(self.lease.deployment)
        if funds is None or funds.state != "open" or funds.seconds_left is None:
            return longest
        if funds.seconds_left <= 0:
            log.info("funds.gone", lease=str(self.lease))
            await self._withdraw()
            return longest
        return min(longest, funds.seconds_left + 1)

    async def _withdraw(self) -> None:
        """A lease that is over meanwhile was paid out when it ended."""
        async with self.context.outside():
            try:
                await self.funds.writer.withdraw(self.lease)
            except LeaseholdError as error:
                if error.kind not in (Kind.CONFLICT, Kind.NOT_FOUND):
                    WITHDRAWALS.labels("failed").inc()
                    raise
        WITHDRAWALS.labels("done").inc()
