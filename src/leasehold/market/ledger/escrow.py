"""Escrow: who has paid what, block by block, without touching everybody each block.

A deployment's escrow holds its funds and pays the sum of its leases' rates each *tick*: one charged
block. Ticks are periods of block time (so that what a tenant pays does not depend on how busy the
ledger is), or heights when the period is 0. Nothing is written while time passes: an escrow is
settled when somebody touches it, and a heap knows the tick at which each would run dry. A block
first closes what ran dry by its time, which costs only as much as there is to close.
"""

from __future__ import annotations

import heapq
from typing import Any

import msgspec
from msgspec.structs import replace

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.market.ledger import money
from leasehold.market.ledger.chain import ChainEvent, Genesis
from leasehold.market.ledger.state import (
    Account,
    Escrow,
    Lease,
    Payment,
    State,
    Supply,
)

NANOSECONDS = 1_000_000_000

_json = msgspec.json.Encoder()


class Ledger:
    """Money of accounts, escrows and payments, at a height and a time."""

    def __init__(self, genesis: Genesis) -> None:
        self.state = State()
        self.params = genesis.params
        self.genesis_time = genesis.time
        self.period = round(genesis.params.charge_period_s * NANOSECONDS)
        self.min_deposit = money.parse(genesis.params.min_deposit)
        self.bid_deposit = money.parse(genesis.params.bid_deposit)
        self.height = 0
        self.time = genesis.time
        self.tick = 0
        self.events: list[ChainEvent] = []
        self._dry: list[tuple[int, str]] = []
        for account in genesis.accounts:
            self.state.put("accounts", Account(account.address))
            for denom, amount in account.coins.items():
                self.mint(account.address, money.check_denom(denom), money.parse(amount))

    def begin(self, height: int, time: int) -> None:
        """Enter a block. ``time`` is nanoseconds UTC and later than the last block's."""
        self.height, self.time = height, time
        self.tick = self.tick_at(height, time)

    def tick_at(self, height: int, time: int) -> int:
        """How many charged blocks there were since the genesis."""
        return (time - self.genesis_time) // self.period if self.period else height

    def emit(self, type: str, **attributes: Any) -> None:
        """Say what happened. Typed events carry JSON values, the others plain text."""
        typed = "." in type
        self.events.append(
            ChainEvent(
                type,
                [
                    (key, _json.encode(value).decode() if typed else value)
                    for key, value in attributes.items()
                ],
            )
        )

    def take_events(self) -> list[ChainEvent]:
        events, self.events = self.events, []
        return events

    # -- accounts ------------------------------------------------------------------------------

    def coin(self, coin: money.Coin, path: str = "amount") -> tuple[str, int]:
        """``(denom, smallest units)`` of an amount that must be more than nothing."""
        denom = money.check_denom(coin.denom, f"{path}.denom")
        units = money.parse(coin.amount, f"{path}.amount")
        if units <= 0:
            raise LeaseholdError(
                "bad_amount", "the amount is nothing", path=f"{path}.amount", got=coin.amount
            )
        return denom, units

    def take(self, address: str, denom: str, units: int) -> None:
        """Subtract from an account, or LeaseholdError ``insufficient_funds``."""
        account = self.state.accounts[address]
        held = account.coins.get(denom, 0)
        if held < units:
            raise LeaseholdError(
                "insufficient_funds",
                f"{address} has {money.text(held)} {denom}, and {money.text(units)} are needed",
                kind=Kind.CONFLICT,
                expected=f"≥ {money.text(units)}",
                got=money.text(held),
            )
        coins = {**account.coins, denom: held - units}
        self.state.put("accounts", replace(account, coins=coins))

    def give(self, address: str, denom: str, units: int) -> None:
        if not units:
            return
        account = self.state.accounts.get(address) or Account(address)
        coins = {**account.coins, denom: account.coins.get(denom, 0) + units}
        self.state.put("accounts", replace(account, coins=coins))

    def mint(self, address: str, denom: str, units: int) -> None:
        supply = self.state.supply.get(denom, Supply(denom, 0))
        if supply.units + units > money.MAX_SUPPLY:
            raise LeaseholdError(
                "supply_exceeded",
                f"there may be no more {denom} than that",
                expected=f"≤ {money.text(money.MAX_SUPPLY)}",
                got=money.text(supply.units + units),
            )
        self.state.put("supply", Supply(denom, supply.units + units))
        self.give(address, denom, units)

    # -- escrow --------------------------------------------------------------------------------

    def settle(self, escrow: Escrow) -> Escrow:
        """Pay all leases of a deployment up to now. Funds never go below nothing."""
        ticks = self.tick - escrow.settled
        if ticks <= 0:
            return escrow
        if not escrow.rate:
            escrow = replace(escrow, settled=self.tick)
            self.state.put("escrows", escrow)
            return escrow
        paid = min(ticks, escrow.funds // escrow.rate)
        # What is left does not pay all leases for one more block: they share it by their rates,
        # and the few units that cannot be shared go back to the owner when the escrow closes.
        rest = escrow.funds - paid * escrow.rate if paid < ticks else 0
        spent = 0
        for payment in list(self.state.payments_of(escrow)):
            earned = paid * payment.rate + rest * payment.rate // escrow.rate
            if earned:
                self.state.put("payments", replace(payment, balance=payment.balance + earned))
            spent += earned
        escrow = replace(
            escrow, funds=escrow.funds - spent, spent=escrow.spent + spent, settled=self.tick
        )
        self.state.put("escrows", escrow)
        return escrow

    def dry_at(self, escrow: Escrow) -> int | None:
        """The first tick that cannot be paid in full; None while nothing is paid."""
        if escrow.state != "open" or not escrow.rate:
            return None
        return escrow.settled + escrow.funds // escrow.rate + 1

    def watch(self, escrow: Escrow) -> None:
        """Remember when ``escrow`` runs dry. Earlier entries of it are recognised as stale."""
        dry = self.dry_at(escrow)
        if dry is not None:
            heapq.heappush(self._dry, (dry, escrow.id))

    def watch_all(self) -> None:
        """Build the heap anew, after the tables were loaded."""
        self._dry = []
        for escrow in self.state.escrows.values():
            dry = self.dry_at(escrow)
            if dry is not None:
                self._dry.append((dry, escrow.id))
        heapq.heapify(self._dry)

    def next_dry(self) -> int | None:
        """The tick at which the next escrow runs dry."""
        while self._dry:
            dry, id = self._dry[0]
            if self.dry_at(self.state.escrows[id]) == dry:
                return dry
            heapq.heappop(self._dry)
        return None

    def pop_dry(self) -> Escrow | None:
        """An escrow that ran dry by now, settled; None when there is none."""
        dry = self.next_dry()
        if dry is None or dry > self.tick:
            return None
        _, id = heapq.heappop(self._dry)
        return self.settle(self.state.escrows[id])

    def deposit(self, escrow: Escrow, units: int) -> None:
        escrow = self.settle(escrow)
        escrow = replace(escrow, funds=escrow.funds + units)
        self.state.put("escrows", escrow)
        self.watch(escrow)

    def open_payment(self, escrow: Escrow, lease: Lease) -> None:
        """Start paying for a lease. ``escrow`` must be settled."""
        self.state.put("payments", Payment(lease.id, "open", lease.denom, lease.price))
        escrow = replace(escrow, rate=escrow.rate + lease.price)
        self.state.put("escrows", escrow)
        self.watch(escrow)

    def withdraw(self, payment: Payment) -> int:
        """Settle and pay a provider what its lease has earned; answers how much."""
        self.settle(self.state.escrows["/".join(payment.id.split("/", 2)[:2])])
        payment = self.state.payments[payment.id]
        units = payment.balance
        self.state.put("payments", replace(payment, balance=0, withdrawn=payment.withdrawn + units))
        self._pay_out(payment, units)
        return units

    def close_payment(self, lease_id: str, *, overdrawn: bool) -> None:
        """Stop paying for a lease and pay its provider what is due."""
        escrow = self.settle(self.state.escrows["/".join(lease_id.split("/", 2)[:2])])
        payment = self.state.payments[lease_id]
        self.state.put("escrows", replace(escrow, rate=escrow.rate - payment.rate))
        self.state.put(
            "payments",
            replace(
                payment,
                state="overdrawn" if overdrawn else "closed",
                balance=0,
                withdrawn=payment.withdrawn + payment.balance,
            ),
        )
        self.watch(self.state.escrows[escrow.id])
        self._pay_out(payment, payment.balance)

    def _pay_out(self, payment: Payment, units: int) -> None:
        if units:
            provider = payment.id.rpartition("/")[2]
            self.give(provider, payment.denom, units)
            self.emit(
                "transfer",
                recipient=provider,
                sender=payment.id.split("/", 1)[0],
                amount=money.text(units) + payment.denom,
            )

    def close_escrow(self, escrow: Escrow, *, overdrawn: bool) -> None:
        """End a deployment's escrow, after its leases: the rest goes back to the owner."""
        escrow = self.settle(escrow)
        self.give(escrow.owner, escrow.denom, escrow.funds)
        self.state.put(
            "escrows", replace(escrow, state="overdrawn" if overdrawn else "closed", funds=0)
        )
