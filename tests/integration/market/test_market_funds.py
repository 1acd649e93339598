"""The funds monitor and withdrawals, in virtual time."""

from __future__ import annotations

import random
from typing import Any

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError, unavailable
from leasehold.core.service import running
from leasehold.events.event import Entity, NewEvent
from leasehold.events.memory import MemoryLog
from leasehold.market.funds import Funds, FundsActivity
from leasehold.market.ports import Funds as View
from leasehold.market.settings import MarketSettings
from leasehold.model.events import market as e
from leasehold.model.market import DeploymentId, LeaseId
from leasehold.observe.engine import Engine

LEASE = LeaseId("owner", 1, 1, 1, "me")


class Market:
    """Answers as told; remembers when it was asked."""

    def __init__(self, clock: VirtualClock, left: float | None = 1e9) -> None:
        self.clock = clock
        self.left = left
        self.down = False
        self.looks: list[float] = []
        self.withdrawals: list[float] = []

    async def funds(self, id: DeploymentId) -> View:
        self.looks.append(self.clock.monotonic())
        if self.down:
            raise unavailable("market_down", "no answer")
        return View(state="open", funds="1", seconds_left=self.left)

    async def withdraw(self, id: LeaseId) -> None:
        if self.down:
            raise unavailable("market_down", "no answer")
        self.withdrawals.append(self.clock.monotonic())


async def won(log: MemoryLog, clock: VirtualClock) -> None:
    payload = e.LeaseWon(id=LEASE, price=e.Price("uakt", "1"), group={}, height=1)
    entity = Entity("lease", str(LEASE))
    await log.append(entity, "*", [NewEvent.of(payload, clock=clock)])


def watched(log: MemoryLog, market: Any, clock: VirtualClock, provider: str = "me") -> Engine:
    funds = Funds(provider, market, market, clock=clock, rng=random.Random(1))
    engine = Engine(log, clock)
    engine.register(funds.activity, kind=FundsActivity)
    return engine


def test_a_new_lease_is_looked_at_at_once_then_every_ten_minutes(virtual: VirtualClock) -> None:
    async def main() -> None:
        log, market = MemoryLog(virtual), Market(virtual)
        async with running(watched(log, market, virtual)):
            await virtual.sleep(5)
            await won(log, virtual)
            await virtual.sleep(3600)
        assert market.looks[0] == pytest.approx(5, abs=1)
        gaps = [b - a for a, b in zip(market.looks, market.looks[1:], strict=False)]
        assert gaps == pytest.approx([600] * len(gaps), abs=1)
        assert len(gaps) >= 5

    virtual.run(main)


def test_the_look_comes_when_the_money_would_be_gone(virtual: VirtualClock) -> None:
    async def main() -> None:
        log, market = MemoryLog(virtual), Market(virtual, left=100)
        async with running(watched(log, market, virtual)):
            await won(log, virtual)
            await virtual.sleep(50)
            market.left = 0
            await virtual.sleep(100)
            assert len(market.looks) == 2
            assert market.looks[1] == pytest.approx(101, abs=2)
            assert len(market.withdrawals) == 1
            await virtual.sleep(600)
            assert len(market.looks) == 3

    virtual.run(main)


def test_earnings_are_withdrawn_daily_also_over_restarts(virtual: VirtualClock) -> None:
    async def main() -> None:
        log, market = MemoryLog(virtual), Market(virtual)
        async with running(watched(log, market, virtual)):
            await won(log, virtual)
            await virtual.sleep(20 * 3600)
        assert market.withdrawals == []
        async with running(watched(log, market, virtual)):
            await virtual.sleep(60 * 3600)
        day = MarketSettings().withdrawal_s
        assert market.withdrawals == pytest.approx([day, 2 * day, 3 * day], abs=2)

    virtual.run(main)


def test_an_unknown_market_is_asked_again_in_a_minute(virtual: VirtualClock) -> None:
    async def main() -> None:
        log, market = MemoryLog(virtual), Market(virtual)
        market.down = True
        async with running(watched(log, market, virtual)):
            await won(log, virtual)
            await virtual.sleep(150)
            assert len(market.looks) == 3
            assert market.withdrawals == []
            market.down = False
            await virtual.sleep(60)
            assert len(market.looks) == 4

    virtual.run(main)


def test_a_closed_lease_and_another_providers_are_left_alone(virtual: VirtualClock) -> None:
    async def main() -> None:
        log, market = MemoryLog(virtual), Market(virtual)
        async with running(watched(log, market, virtual)):
            await won(log, virtual)
            await virtual.sleep(1)
            closed = e.LeaseClosed(id=LEASE, height=2)
            await log.append(Entity("lease", str(LEASE)), "*", [NewEvent.of(closed)])
            await virtual.sleep(100_000)
        assert len(market.looks) == 1
        assert await log.next_timer() is None
        other = Market(virtual)
        async with running(watched(MemoryLog(virtual), other, virtual, provider="another")):
            await virtual.sleep(1000)
        assert other.looks == []

    virtual.run(main)


def test_a_lease_paid_out_meanwhile_is_no_failure(virtual: VirtualClock) -> None:
    class Over(Market):
        async def withdraw(self, id: LeaseId) -> None:
            from leasehold.core.errors import Kind

            raise LeaseholdError("lease_closed", "paid out", kind=Kind.CONFLICT)

    async def main() -> None:
        log, market = MemoryLog(virtual), Over(virtual, left=0)
        async with running(watched(log, market, virtual)):
            await won(log, virtual)
            await virtual.sleep(100)
            assert len(market.looks) == 1

    virtual.run(main)
