"""The ledger's state: tables of immutable objects, and a journal that can undo.

A change replaces an object, so that a snapshot is a copy of references, a refused transaction is
undone by putting the old objects back, and the list of what a block changed comes for free. The
indexes (who bids on an order, whose lease it is) follow every change. Objects cannot form cycles,
so the garbage collector need not walk them, however many there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.market.accounts import PublicKey
from leasehold.market.ledger import money
from leasehold.model.resources import Attribute, GroupSpec

Units = Annotated[int, Meta(ge=0)]
"""Smallest units of a denomination (see ``money``)."""


class Account(Struct, frozen=True, gc=False):
    """``sequence`` counts its transactions, ``deployments`` the numbers it has used."""

    id: str
    coins: dict[str, Units] = {}
    sequence: int = 0
    key: PublicKey | None = None
    deployments: int = 0


class Deployment(Struct, frozen=True, gc=False):
    """``hash`` is the hex version hash of its manifest; ``created`` and ``closed`` are heights."""

    id: str
    owner: str
    dseq: int
    state: Literal["active", "closed"]
    hash: str
    groups: int
    created: int
    reclamation_window: int = 0
    closed: int = 0


class Group(Struct, frozen=True, gc=False):
    """``spec`` is the group's JSON; ``orders`` counts how often it was put out for bids."""

    id: str
    state: Literal["open", "paused", "insufficient_funds", "closed"]
    spec: bytes
    created: int
    orders: int = 0


class Order(Struct, frozen=True, gc=False):
    id: str
    state: Literal["open", "active", "closed"]
    created: int
    closed: int = 0


class Bid(Struct, frozen=True, gc=False):
    """``price`` and ``deposit`` are smallest units; the deposit is 0 once given back.

    ``made`` is nanoseconds UTC.
    """

    id: str
    state: Literal["open", "active", "lost", "closed"]
    denom: str
    price: Units
    deposit: Units
    created: int
    made: int
    reclamation_window: int = 0
    reason: int = 0
    closed: int = 0


class Lease(Struct, frozen=True, gc=False):
    """``made``, and ``deadline`` when a reclaiming lease may be closed, are nanoseconds UTC."""

    id: str
    state: Literal["active", "reclaiming", "insufficient_funds", "closed"]
    denom: str
    price: Units
    created: int
    made: int
    reclamation_window: int = 0
    deadline: int = 0
    reason: int = 0
    closed: int = 0


class Escrow(Struct, frozen=True, gc=False):
    """The funds of a deployment. ``settled`` is the tick up to which leases were paid."""

    id: str
    owner: str
    state: Literal["open", "overdrawn", "closed"]
    denom: str
    funds: Units
    settled: int
    rate: Units = 0
    spent: Units = 0


class Payment(Struct, frozen=True, gc=False):
    """What a lease earns: ``balance`` is earned and not yet withdrawn."""

    id: str
    state: Literal["open", "overdrawn", "closed"]
    denom: str
    rate: Units
    balance: Units = 0
    withdrawn: Units = 0


class Certificate(Struct, frozen=True, gc=False):
    """``id`` is owner/serial."""

    id: str
    state: Literal["valid", "revoked"]
    pem: str


class Provider(Struct, frozen=True, gc=False):
    id: str
    host_uri: str
    attributes: list[Attribute]
    email: str = ""
    website: str = ""


class Audit(Struct, frozen=True, gc=False):
    """``id`` is provider/auditor."""

    id: str
    attributes: list[Attribute]


class Supply(Struct, frozen=True, gc=False):
    """``id`` is the denomination, ``units`` all there is of it."""

    id: str
    units: Units


LIVE_BID = ("open", "active")
LIVE_LEASE = ("active", "reclaiming")

TABLES: dict[str, type[Struct]] = {
    "accounts": Account,
    "deployments": Deployment,
    "groups": Group,
    "orders": Order,
    "bids": Bid,
    "leases": Lease,
    "escrows": Escrow,
    "payments": Payment,
    "certificates": Certificate,
    "providers": Provider,
    "audits": Audit,
    "supply": Supply,
}

_msgpack = msgspec.msgpack.Encoder(order="deterministic")
_group_spec = msgspec.json.Decoder(GroupSpec)


class State:
    """All tables. Change them through :meth:`put` only."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, Any]] = {name: {} for name in TABLES}
        self.accounts: dict[str, Account] = self.tables["accounts"]
        self.deployments: dict[str, Deployment] = self.tables["deployments"]
        self.groups: dict[str, Group] = self.tables["groups"]
        self.orders: dict[str, Order] = self.tables["orders"]
        self.bids: dict[str, Bid] = self.tables["bids"]
        self.leases: dict[str, Lease] = self.tables["leases"]
        self.escrows: dict[str, Escrow] = self.tables["escrows"]
        self.payments: dict[str, Payment] = self.tables["payments"]
        self.certificates: dict[str, Certificate] = self.tables["certificates"]
        self.providers: dict[str, Provider] = self.tables["providers"]
        self.audits: dict[str, Audit] = self.tables["audits"]
        self.supply: dict[str, Supply] = self.tables["supply"]
        self.open_orders: dict[str, None] = {}
        self.order_bids: dict[str, list[str]] = {}
        self.provider_leases: dict[str, dict[str, None]] = {}
        self.provider_bids: dict[str, dict[str, None]] = {}
        self._undo: list[tuple[str, str, Any]] = []

    def put(self, table: str, obj: Any) -> None:
        """Insert or replace; undone by :meth:`rollback`."""
        rows = self.tables[table]
        key = obj.id
        old = rows.get(key)
        self._undo.append((table, key, old))
        rows[key] = obj
        self._index(table, key, old, obj)

    def _index(self, table: str, key: str, old: Any, new: Any) -> None:
        """Keep the indexes right when ``old`` becomes ``new`` (either may be None)."""
        if table == "orders":
            if new is not None and new.state == "open":
                self.open_orders[key] = None
            else:
                self.open_orders.pop(key, None)
        elif table == "bids":
            order, _, provider = key.rpartition("/")
            if old is None:
                self.order_bids.setdefault(order, []).append(key)
            elif new is None:
                self.order_bids[order].remove(key)
                if not self.order_bids[order]:
                    del self.order_bids[order]
            self._live(self.provider_bids, provider, key, new, LIVE_BID)
        elif table == "leases":
            provider = key.rpartition("/")[2]
            self._live(self.provider_leases, provider, key, new, LIVE_LEASE)

    @staticmethod
    def _live(
        index: dict[str, dict[str, None]], owner: str, key: str, new: Any, states: tuple[str, ...]
    ) -> None:
        if new is not None and new.state in states:
            index.setdefault(owner, {})[key] = None
        elif owner in index:
            index[owner].pop(key, None)
            if not index[owner]:
                del index[owner]

    def mark(self) -> int:
        """Where to roll back to."""
        return len(self._undo)

    def rollback(self, mark: int) -> None:
        """Undo every change since ``mark``."""
        while len(self._undo) > mark:
            table, key, old = self._undo.pop()
            rows = self.tables[table]
            new = rows[key]
            if old is None:
                del rows[key]
            else:
                rows[key] = old
            self._index(table, key, new, old)

    def seal(self, previous: bytes) -> bytes:
        """End a block: the hash of ``previous`` and of everything that changed since the last."""
        digest = hashlib.sha256(previous)
        for table, key in dict.fromkeys((table, key) for table, key, _ in self._undo):
            digest.update(table.encode())
            digest.update(_msgpack.encode(self.tables[table][key]))
        self._undo.clear()
        return digest.digest()

    def reindex(self) -> None:
        """Build the indexes anew, after tables were filled by a snapshot or an import."""
        self.open_orders = {key: None for key, o in self.orders.items() if o.state == "open"}
        self.order_bids, self.provider_bids, self.provider_leases = {}, {}, {}
        for key, bid in self.bids.items():
            order, _, provider = key.rpartition("/")
            self.order_bids.setdefault(order, []).append(key)
            if bid.state in LIVE_BID:
                self.provider_bids.setdefault(provider, {})[key] = None
        for key, lease in self.leases.items():
            if lease.state in LIVE_LEASE:
                self.provider_leases.setdefault(key.rpartition("/")[2], {})[key] = None

    # -- questions the machine asks ------------------------------------------------------------

    def groups_of(self, deployment: Deployment) -> Iterator[Group]:
        for gseq in range(1, deployment.groups + 1):
            yield self.groups[f"{deployment.id}/{gseq}"]

    def current_order(self, group: Group) -> Order:
        """The newest order of a group: the only one that can be open or active."""
        return self.orders[f"{group.id}/{group.orders}"]

    def bids_on(self, order: str) -> list[Bid]:
        """In the order they were made."""
        return [self.bids[key] for key in self.order_bids.get(order, ())]

    def payments_of(self, escrow: Escrow) -> Iterator[Payment]:
        """Open payments of a deployment's leases, by group."""
        deployment = self.deployments[escrow.id]
        for group in self.groups_of(deployment):
            for bid in self.bids_on(f"{group.id}/{group.orders}"):
                payment = self.payments.get(bid.id)
                if payment is not None and payment.state == "open":
                    yield payment

    def total(self, denom: str) -> int:
        """All smallest units of ``denom``, wherever they are."""
        return (
            sum(a.coins.get(denom, 0) for a in self.accounts.values())
            + sum(e.funds for e in self.escrows.values() if e.denom == denom)
            + sum(p.balance for p in self.payments.values() if p.denom == denom)
            + sum(b.deposit for b in self.bids.values() if b.denom == denom)
        )

    def digest(self) -> str:
        """sha256 over everything, sorted: equal states have equal digests. Takes a while."""
        digest = hashlib.sha256()
        for name in sorted(self.tables):
            rows = self.tables[name]
            for key in sorted(rows):
                digest.update(name.encode())
                digest.update(_msgpack.encode(rows[key]))
        return digest.hexdigest()


def load_objects(state: State, lines: bytes) -> int:
    """Put exported objects (``[table, object]`` a line) into a state; answers how many."""
    count = 0
    for line in lines.splitlines():
        try:
            name, raw = _line.decode(line)
            obj = _objects[name].decode(raw)
        except (msgspec.MsgspecError, KeyError) as error:
            raise LeaseholdError(
                "bad_export",
                f"this is not a whole ledger: object {count + 1}: {error}",
                kind=Kind.MALFORMED,
            ) from None
        state.tables[name][obj.id] = obj
        count += 1
    state.reindex()
    return count


_line = msgspec.json.Decoder(tuple[str, msgspec.Raw])
_objects: dict[str, Any] = {name: msgspec.json.Decoder(cls) for name, cls in TABLES.items()}


def spec_of(group: Group) -> GroupSpec:
    return _group_spec.decode(group.spec)


_AMOUNTS = frozenset(
    ("price", "deposit", "funds", "rate", "spent", "balance", "withdrawn", "units")
)


def view(obj: Any) -> dict[str, Any]:
    """An object as JSON for queries: amounts in decimal base units, the group spec expanded."""
    out: dict[str, Any] = {}
    for name in obj.__struct_fields__:
        value = getattr(obj, name)
        if name in _AMOUNTS:
            out[name] = money.text(value)
        elif name == "coins":
            out[name] = {denom: money.text(units) for denom, units in value.items()}
        elif name == "spec":
            out[name] = msgspec.json.decode(value)
        else:
            out[name] = msgspec.to_builtins(value)
    return out
