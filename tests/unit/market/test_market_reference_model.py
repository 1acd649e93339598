"""Random command sequences against a reference model that is as simple as it can be.

The model charges every lease every tick, has no heap, no journal, no lazy settlement and no ids
but tuples. The ledger must agree with it, after each block, on what was refused, what happened,
every state, every escrow and every balance; money is conserved and never negative; replaying the
blocks from genesis gives the same state.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.market.accounts import Key
from leasehold.market.ledger import messages as m
from leasehold.market.ledger.blocks import Chain
from leasehold.market.ledger.chain import Block, ChainEvent, Genesis, GenesisAccount, Param
from leasehold.market.ledger.money import SCALE, Coin
from leasehold.market.testing import GROUP
from leasehold.model.market import DeploymentId
from leasehold.model.resources import GroupSpec

SPEC = msgspec.convert(GROUP, GroupSpec)
MOST = 50 * SCALE
KEYS = [Key.from_secret("ed25519", bytes([i]) * 32) for i in range(1, 5)]
NAMES = [key.address for key in KEYS]
PROVIDERS = NAMES[2:]
RICH, DEPOSIT, BID_DEPOSIT = 2000 * SCALE, 100 * SCALE, 5 * SCALE
PERIOD = 6_000_000_000
START = 1_767_225_600_000_000_000


class Refused(Exception):
    pass


def check(condition: object) -> None:
    if not condition:
        raise Refused


# -- the model -------------------------------------------------------------------------------------


@dataclass
class B:
    price: int
    deposit: int
    window: int
    state: str = "open"
    lease: str = ""
    earned: int = 0
    deadline: int = 0


@dataclass
class O:  # noqa: E742
    state: str = "open"
    bids: dict[str, B] = field(default_factory=dict)


@dataclass
class G:
    state: str = "open"
    orders: list[O] = field(default_factory=list)


@dataclass
class D:
    funds: int
    window: int
    groups: list[G]
    state: str = "active"
    escrow: str = "open"
    dry: int = 0


class Model:
    def __init__(self) -> None:
        self.coins = dict.fromkeys(NAMES, RICH)
        self.all: dict[tuple[str, int], D] = {}
        self.registered: set[str] = set()
        self.used = dict.fromkeys(NAMES, 0)
        self.tick, self.time = 0, START
        self.said: list[tuple[Any, ...]] = []

    def say(self, what: str, *id: Any) -> None:
        self.said.append((what, *id))

    def pay(self, who: str, units: int) -> None:
        check(self.coins[who] >= units)
        self.coins[who] -= units

    def begin(self, time: int) -> None:
        self.time = time
        while self.tick < (time - START) // PERIOD:
            self.tick += 1
            for d in self.all.values():
                leases = [b for g in d.groups for o in g.orders for b in o.bids.values()]
                self.charge(d, [b for b in leases if b.lease in ("active", "reclaiming")])
        dry = sorted((d.dry, f"{owner}/{dseq}") for (owner, dseq), d in self.all.items() if d.dry)
        for _, id in dry:
            owner, _, dseq = id.partition("/")
            self.end(owner, int(dseq), 20000)

    def charge(self, d: D, leases: list[B]) -> None:
        rate = sum(b.price for b in leases)
        if not rate or d.dry:
            return
        if d.funds >= rate:
            for b in leases:
                b.earned += b.price
            d.funds -= rate
            return
        shares = [d.funds * b.price // rate for b in leases]
        for b, share in zip(leases, shares, strict=True):
            b.earned += share
        d.funds -= sum(shares)
        d.dry = self.tick

    def create(self, owner: str, dseq: int, groups: int, deposit: int, window: int) -> None:
        dseq = dseq or self.used[owner] + 1
        check((owner, dseq) not in self.all and deposit >= DEPOSIT)
        self.pay(owner, deposit)
        self.used[owner] = max(self.used[owner], dseq)
        self.all[owner, dseq] = D(deposit, window, [G() for _ in range(groups)])
        self.say("DeploymentCreated", owner, dseq)
        for gseq in range(1, groups + 1):
            self.open(owner, dseq, gseq)

    def open(self, owner: str, dseq: int, gseq: int) -> None:
        group = self.all[owner, dseq].groups[gseq - 1]
        group.state = "open"
        group.orders.append(O())
        self.say("OrderCreated", owner, dseq, gseq, len(group.orders))

    def own(self, owner: str, dseq: int, gseq: int = 1) -> tuple[D, G]:
        d = self.all.get((owner, dseq))
        check(d and d.state == "active" and 1 <= gseq <= len(d.groups))
        assert d is not None
        return d, d.groups[gseq - 1]

    def deposit(self, who: str, owner: str, dseq: int, units: int) -> None:
        d = self.all.get((owner, dseq))
        check(d and d.escrow == "open")
        self.pay(who, units)
        assert d is not None
        d.funds += units

    def close(self, owner: str, dseq: int) -> None:
        self.own(owner, dseq)
        self.end(owner, dseq, 1)

    def end(self, owner: str, dseq: int, reason: int) -> None:
        d = self.all[owner, dseq]
        broke = reason == 20000
        for gseq, g in enumerate(d.groups, 1):
            if g.state in ("open", "paused"):
                state = "insufficient_funds" if broke else "closed"
                self.end_group(owner, dseq, gseq, state, reason)
        self.coins[owner] += d.funds
        d.funds, d.dry, d.state = 0, 0, "closed"
        d.escrow = "overdrawn" if broke else "closed"
        self.say("DeploymentClosed", owner, dseq)

    def end_group(self, owner: str, dseq: int, gseq: int, state: str, reason: int) -> None:
        g = self.all[owner, dseq].groups[gseq - 1]
        oseq, o = len(g.orders), g.orders[-1]
        if o.state != "closed":
            for provider, b in o.bids.items():
                if b.state == "active":
                    self.end_lease(b, reason, owner, dseq, gseq, oseq, provider)
                elif b.state == "open":
                    self.end_bid(b, "closed", owner, dseq, gseq, oseq, provider)
            o.state = "closed"
            self.say("OrderClosed", owner, dseq, gseq, oseq)
        g.state = state
        self.say("GroupPaused" if state == "paused" else "GroupClosed", owner, dseq, gseq)

    def end_lease(self, b: B, reason: int, *id: Any) -> None:
        b.lease = "insufficient_funds" if reason == 20000 else "closed"
        self.coins[id[-1]] += b.earned
        b.earned = 0
        self.say("LeaseClosed", *id)
        self.end_bid(b, "closed", *id)

    def end_bid(self, b: B, state: str, *id: Any) -> None:
        self.coins[id[-1]] += b.deposit
        b.deposit, b.state = 0, state
        self.say("BidClosed", *id)

    def pause(self, owner: str, dseq: int, gseq: int) -> None:
        check(self.own(owner, dseq, gseq)[1].state == "open")
        self.end_group(owner, dseq, gseq, "paused", 1)

    def start(self, owner: str, dseq: int, gseq: int) -> None:
        check(self.own(owner, dseq, gseq)[1].state == "paused")
        self.say("GroupStarted", owner, dseq, gseq)
        self.open(owner, dseq, gseq)

    def close_group(self, owner: str, dseq: int, gseq: int) -> None:
        check(self.own(owner, dseq, gseq)[1].state in ("open", "paused"))
        self.end_group(owner, dseq, gseq, "closed", 1)

    def order(self, owner: str, dseq: int, gseq: int, oseq: int) -> tuple[D, O]:
        d = self.all.get((owner, dseq))
        check(d and 1 <= gseq <= len(d.groups) and 1 <= oseq <= len(d.groups[gseq - 1].orders))
        assert d is not None
        return d, d.groups[gseq - 1].orders[oseq - 1]

    def bid(self, me: str, id: tuple[str, int, int, int], price: int, window: int) -> None:
        d, o = self.order(*id)
        check(o.state == "open" and me not in o.bids and me in self.registered)
        check(0 < price <= MOST and window >= d.window)
        self.pay(me, BID_DEPOSIT)
        o.bids[me] = B(price, BID_DEPOSIT, window if d.window else 0)
        self.say("BidCreated", *id, me)

    def close_bid(self, me: str, id: tuple[str, int, int, int]) -> None:
        d, o = self.order(*id)
        b = o.bids.get(me)
        check(b and b.state in ("open", "active"))
        assert b is not None
        if b.state == "open":
            self.end_bid(b, "closed", *id, me)
            return
        check(not b.window or 0 < b.deadline <= self.time)
        self.finish(d, o, b, 10002, id, me)

    def finish(
        self, d: D, o: O, b: B, reason: int, id: tuple[str, int, int, int], provider: str
    ) -> None:
        self.end_lease(b, reason, *id, provider)
        o.state = "closed"
        self.say("OrderClosed", *id)
        d.groups[id[2] - 1].state = "paused"
        self.say("GroupPaused", *id[:3])

    def accept(self, owner: str, dseq: int, gseq: int, oseq: int, provider: str) -> None:
        d, o = self.order(owner, dseq, gseq, oseq)
        b = o.bids.get(provider)
        check(b and b.state == "open" and o.state == "open" and d.funds >= b.price)
        assert b is not None
        o.state, b.state, b.lease = "active", "active", "active"
        self.say("LeaseCreated", owner, dseq, gseq, oseq, provider)
        for other, lost in o.bids.items():
            if lost.state == "open":
                self.end_bid(lost, "lost", owner, dseq, gseq, oseq, other)

    def close_lease(self, owner: str, dseq: int, gseq: int, oseq: int, provider: str) -> None:
        d, _ = self.own(owner, dseq, gseq)
        _, o = self.order(owner, dseq, gseq, oseq)
        b = o.bids.get(provider)
        check(b and b.lease in ("active", "reclaiming"))
        assert b is not None
        self.finish(d, o, b, 1, (owner, dseq, gseq, oseq), provider)

    def reclaim(self, me: str, id: tuple[str, int, int, int]) -> None:
        _, o = self.order(*id)
        b = o.bids.get(me)
        check(b and b.lease == "active" and b.window)
        assert b is not None
        b.lease, b.deadline = "reclaiming", self.time + b.window * 1_000_000_000
        self.say("LeaseReclaimStarted", *id, me)

    def withdraw(self, me: str, id: tuple[str, int, int, int]) -> None:
        _, o = self.order(*id)
        b = o.bids.get(me)
        check(b and b.lease in ("active", "reclaiming"))
        assert b is not None
        self.coins[me] += b.earned
        b.earned = 0


# -- the same commands, to both --------------------------------------------------------------------

VERBS = {"time": 3, "create": 2, "bid": 6, "accept": 6, "deposit": 1, "close": 0.3, "pause": 0.5}
VERBS |= {"start": 1, "close_group": 0.3, "close_lease": 0.5, "close_bid": 1, "reclaim": 2}
VERBS |= {"withdraw": 1}
"""How often each is tried."""


def command(model: Model, verb: str, rng: random.Random) -> tuple[Any, ...]:
    """A command about what exists, most of the time one that may succeed."""
    known = [
        (owner, dseq, gseq, len(g.orders) - (rng.random() < 0.1))
        for (owner, dseq), d in model.all.items()
        for gseq, g in enumerate(d.groups, 1)
    ]
    id = rng.choice(known[-6:]) if known else (NAMES[0], 1, 1, 1)
    provider = rng.choice(PROVIDERS if rng.random() < 0.95 else NAMES)
    if verb == "time":
        return verb, rng.choice([0, 1, 2, 5, 30])
    if verb == "create":
        deposit = rng.choice([10, 100, 100, 150, 700]) * SCALE + rng.randrange(1000)
        owner, dseq = rng.choice(NAMES[:2]), rng.choice([0, 0, 0, rng.randrange(9)])
        return verb, owner, dseq, rng.randint(1, 2), deposit, rng.choice([0, 0, 60])
    if verb == "deposit":
        return verb, rng.choice(NAMES), *id[:2], rng.randint(1, 30 * SCALE)
    if verb == "close":
        return verb, *id[:2]
    if verb in ("pause", "start", "close_group"):
        return verb, *id[:3]
    if verb == "bid":
        return verb, provider, id, rng.choice([1, 7, MOST, MOST + 1, rng.randint(1, MOST)]), 90
    if verb in ("accept", "close_lease"):
        return verb, *id, provider
    return verb, provider, id


def message(verb: str, *args: Any) -> tuple[str, Any]:
    """``(signer, message)`` of a command."""
    coin: Callable[[int], Coin] = lambda units: Coin("uakt", f"{units / SCALE:.6f}")  # noqa: E731
    if verb == "create":
        owner, dseq, groups, deposit, window = args
        specs = [msgspec.structs.replace(SPEC, name=f"g{i}") for i in range(groups)]
        return owner, m.CreateDeployment(
            dseq=dseq,
            hash="ab" * 32,
            groups=specs,
            deposit=coin(deposit),
            reclamation_window=window,
        )
    if verb == "deposit":
        me, owner, dseq, units = args
        return me, m.DepositDeployment(id=DeploymentId(owner, dseq), amount=coin(units))
    if verb == "close":
        return args[0], m.CloseDeployment(dseq=args[1])
    if verb in ("pause", "start", "close_group"):
        kind = {"pause": m.PauseGroup, "start": m.StartGroup, "close_group": m.CloseGroup}[verb]
        return args[0], kind(dseq=args[1], gseq=args[2])
    if verb in ("accept", "close_lease"):
        owner, dseq, gseq, oseq, other = args
        kind = m.CreateLease if verb == "accept" else m.CloseLease
        return owner, kind(dseq=dseq, gseq=gseq, oseq=oseq, provider=other)
    if verb == "register":
        return args[0], m.SetProvider(host_uri="https://p")
    (owner, dseq, gseq, oseq), rest = args[1], args[2:]
    id = {"owner": owner, "dseq": dseq, "gseq": gseq, "oseq": oseq}
    if verb == "bid":
        return args[0], m.CreateBid(
            **id, price=coin(rest[0]), deposit=coin(BID_DEPOSIT), reclamation_window=rest[1]
        )
    kind = {"close_bid": m.CloseBid, "reclaim": m.ReclaimLease, "withdraw": m.WithdrawLease}[verb]
    return args[0], kind(**id)


def genesis() -> Genesis:
    return Genesis(
        chain_id="test",
        time=START,
        accounts=[GenesisAccount(name, {"uakt": str(RICH // SCALE)}) for name in NAMES],
        params=Param(
            charge_period_s=PERIOD / 1e9,
            min_deposit=str(DEPOSIT // SCALE),
            bid_deposit=str(BID_DEPOSIT // SCALE),
        ),
        validator=KEYS[0].public.data,
    )


class Both:
    def __init__(self) -> None:
        self.model, self.chain = Model(), Chain(genesis())
        self.blocks: list[Block] = []
        self.sequences = dict.fromkeys(NAMES, 0)
        self.time = START + 1
        self.begin()

    def begin(self) -> None:
        self.model.said.clear()
        self.chain.begin(self.time)
        self.model.begin(self.chain.machine.time)
        assert ids(self.chain._events) == self.model.said

    def advance(self, ticks: int) -> None:
        block = self.chain.finish()
        if block is not None:
            self.blocks.append(block)
        compare(self.model, self.chain)
        self.time += ticks * PERIOD + 1
        self.begin()

    def run(self, verb: str, *args: Any) -> None:
        if verb == "time":
            self.advance(*args)
            return
        signer, asked = message(verb, *args)
        key = KEYS[NAMES.index(signer)]
        body = m.Body(chain_id="test", sequence=self.sequences[signer], messages=[asked])
        tx = m.Tx(body=msgspec.json.encode(body).decode(), key=key.public, signature=b"")
        raw = msgspec.json.encode(tx)
        before = msgspec.json.encode(list(self.chain.state.tables.values()))
        self.model.said.clear()
        try:
            said = ids(self.chain.execute(m.receive(raw, 1 << 20)).events)
        except LeaseholdError:
            said = None
            assert msgspec.json.encode(list(self.chain.state.tables.values())) == before
        else:
            self.sequences[signer] += 1
        try:
            if verb == "register":
                self.model.registered.add(args[0])
            else:
                getattr(self.model, verb)(*args)
        except Refused:
            assert said is None, (verb, args)
        else:
            assert said == self.model.said, (verb, args)


def ids(events: list[ChainEvent]) -> list[tuple[Any, ...]]:
    """Market events as ``(what, *id)``."""
    out: list[tuple[Any, ...]] = []
    for event in events:
        what = event.type.rpartition(".Event")[2]
        if event.type.startswith(("akash.deployment", "akash.market")):
            said = msgspec.json.decode(dict(event.attributes)["id"])
            parts = [said["owner"], int(said["dseq"])]
            parts += [said[k] for k in ("gseq", "oseq", "provider") if k in said]
            out.append((what, *parts))
    return out


def compare(model: Model, chain: Chain) -> None:
    state = chain.state
    for name in NAMES:
        assert state.accounts[name].coins["uakt"] == model.coins[name] >= 0
    assert state.total("uakt") == RICH * len(NAMES)
    assert len(state.deployments) == len(model.all)
    for (owner, dseq), d in model.all.items():
        id = f"{owner}/{dseq}"
        assert state.deployments[id].state == d.state
        escrow = chain.machine.settle(state.escrows[id])
        assert (escrow.state, escrow.funds) == (d.escrow, d.funds)
        assert escrow.funds >= 0
        for gseq, g in enumerate(d.groups, 1):
            assert state.groups[f"{id}/{gseq}"].state == g.state
            for oseq, o in enumerate(g.orders, 1):
                assert state.orders[f"{id}/{gseq}/{oseq}"].state == o.state
                for name, b in o.bids.items():
                    bid = f"{id}/{gseq}/{oseq}/{name}"
                    assert (state.bids[bid].state, state.bids[bid].deposit) == (b.state, b.deposit)
                    if b.lease:
                        assert state.leases[bid].state == b.lease
                        assert state.payments[bid].balance == b.earned >= 0
    # Looking must not count as something that happened.
    chain.machine.state.rollback(0)


@pytest.mark.parametrize("seed", range(60))
def test_the_ledger_agrees_with_the_model(seed: int) -> None:
    rng = random.Random(seed)
    both = Both()
    for name in PROVIDERS:
        both.run("register", name)
    for _ in range(200):
        verb = rng.choices(list(VERBS), list(VERBS.values()))[0]
        both.run(*command(both.model, verb, rng))
    both.advance(1)
    block = both.chain.finish()
    if block is not None:
        both.blocks.append(block)
    again = Chain(genesis())
    for block in both.blocks:
        again.replay(block)
    assert again.state.digest() == both.chain.state.digest()
    assert again.last == both.chain.last
    kept = indexes(again)
    again.state.reindex()  # as after a snapshot was read
    assert indexes(again) == kept


def indexes(chain: Chain) -> Any:
    state = chain.state
    return copy.deepcopy(
        (state.open_orders, state.order_bids, state.provider_bids, state.provider_leases)
    )


def test_a_typical_life_is_among_what_is_tried() -> None:
    """The generator could be unlucky: these commands reach every state the model knows."""
    both = Both()
    both.run("register", PROVIDERS[0])
    both.run("register", PROVIDERS[1])
    both.run("create", NAMES[0], 0, 2, DEPOSIT, 60)
    first, second = (NAMES[0], 1, 1, 1), (NAMES[0], 1, 2, 1)
    both.run("bid", PROVIDERS[0], first, 7 * SCALE + 1, 90)
    both.run("bid", PROVIDERS[1], first, 3 * SCALE, 90)
    both.run("bid", PROVIDERS[1], second, 11, 90)
    both.run("accept", *first, PROVIDERS[0])
    both.advance(3)
    both.run("accept", *second, PROVIDERS[1])
    both.run("close_bid", PROVIDERS[0], first)
    both.run("reclaim", PROVIDERS[0], first)
    both.run("withdraw", PROVIDERS[0], first)
    both.advance(5)
    leases = both.chain.state.leases
    assert {lease.state for lease in leases.values()} == {"active", "reclaiming"}
    both.advance(40)
    assert {lease.state for lease in leases.values()} == {"insufficient_funds"}
    both.advance(1)
