"""Questions about the state: one object by id, or a page of those that match a filter.

Asked through ``abci_query``: path ``/leases/get`` with the id as data, or ``/leases/list`` with
JSON data ``{"filter": {"owner": …, "state": …}, "limit": 100, "next": …}``. Pages follow the order
in which things were made; ``next`` of an answer continues after it, also when things change
meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from leasehold.core.errors import Kind, LeaseholdError, not_found
from leasehold.market.ledger import money
from leasehold.market.ledger.machine import Machine
from leasehold.market.ledger.state import TABLES, view

MAX_PAGE = 1000
"""Objects in one page; the originals' catch-up of open orders uses as many."""

_ID_FIELDS = ("owner", "dseq", "gseq", "oseq", "provider")


class Page(Struct, frozen=True, forbid_unknown_fields=True):
    filter: dict[str, str | int] = {}
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = 100
    next: str = ""


_page = msgspec.json.Decoder(Page)


def ask(machine: Machine, path: str, data: bytes, now: int) -> Any:
    """Answer one question as of ``now`` (nanoseconds UTC); LeaseholdError when it is none."""
    table, _, verb = path.strip("/").partition("/")
    if table == "escrow" and verb == "get":
        return escrow(machine, _text(data), now)
    if table == "counts" and verb == "get":
        return counts(machine)
    if table == "offer" and verb == "get":
        return offer(machine, _text(data))
    if table not in TABLES or verb not in ("get", "list"):
        raise LeaseholdError(
            "bad_path",
            f"no query {path!r}; use /TABLE/get or /TABLE/list",
            kind=Kind.NOT_FOUND,
            expected=", ".join(TABLES),
            got=path,
        )
    if verb == "get":
        id = _text(data)
        found = machine.state.tables[table].get(id)
        if found is None:
            raise not_found(table.removesuffix("s"), id)
        return view(found)
    try:
        page = _page.decode(data or b"{}")
    except msgspec.MsgspecError as error:
        raise LeaseholdError("bad_page", str(error), kind=Kind.MALFORMED) from None
    return listing(machine, table, page)


def listing(machine: Machine, table: str, page: Page) -> dict[str, Any]:
    rows = machine.state.tables[table]
    keys = candidates(machine, table, page.filter)
    accept = _filter(table, page.filter)
    items: list[Any] = []
    skipping = bool(page.next)
    last = ""
    for key in keys:
        if skipping:
            skipping = key != page.next
            continue
        obj = rows[key]
        if not accept(key, obj):
            continue
        if len(items) == page.limit:
            return {"items": items, "next": last}
        items.append(view(obj))
        last = key
    if skipping:
        # What the last page ended with has left the list: its place is found by comparing.
        return _resume(machine, table, page)
    return {"items": items, "next": ""}


def _resume(machine: Machine, table: str, page: Page) -> dict[str, Any]:
    rows = machine.state.tables[table]
    if page.next not in rows:
        raise LeaseholdError(
            "bad_page", "the page to continue from is unknown", kind=Kind.MALFORMED, got=page.next
        )
    accept = _filter(table, page.filter)
    items: list[Any] = []
    started, last = False, ""
    for key, obj in rows.items():
        if started and accept(key, obj):
            if len(items) == page.limit:
                return {"items": items, "next": last}
            items.append(view(obj))
            last = key
        started = started or key == page.next
    return {"items": items, "next": ""}


def candidates(machine: Machine, table: str, filter: dict[str, str | int]) -> Iterable[str]:
    """The keys worth looking at, from an index where one fits the filter."""
    state = machine.state
    if table == "orders" and filter.get("state") == "open":
        return state.open_orders
    if table == "bids" and all(f in filter for f in _ID_FIELDS[:4]):
        return state.order_bids.get("/".join(str(filter[f]) for f in _ID_FIELDS[:4]), [])
    provider = filter.get("provider")
    if table == "bids" and provider and filter.get("state") in ("open", "active"):
        return state.provider_bids.get(str(provider), {})
    if table == "leases" and provider and filter.get("state") in ("active", "reclaiming", "live"):
        return state.provider_leases.get(str(provider), {})
    return state.tables[table]


def _filter(table: str, filter: dict[str, str | int]) -> Callable[[str, Any], bool]:
    """``live`` as a state means active or reclaiming; ids match by their parts."""
    positions = {}
    attributes = {}
    fields = set(TABLES[table].__struct_fields__)
    for name, value in filter.items():
        if name in _ID_FIELDS and name not in fields:
            if table == "audits":
                name = "owner" if name == "provider" else name
            positions[_ID_FIELDS.index(name)] = str(value)
        elif name == "auditor" and table == "audits":
            positions[1] = str(value)
        elif name in fields:
            attributes[name] = value
        else:
            raise LeaseholdError(
                "bad_filter",
                f"{table} cannot be filtered by {name!r}",
                kind=Kind.MALFORMED,
                expected=", ".join([*_ID_FIELDS, *sorted(fields)]),
                got=name,
            )
    live = attributes.get("state") == "live"
    if live:
        del attributes["state"]

    def accept(key: str, obj: Any) -> bool:
        if live and obj.state not in ("active", "reclaiming"):
            return False
        for name, value in attributes.items():
            if getattr(obj, name) != value:
                return False
        if positions:
            parts = key.split("/")
            for at, value in positions.items():
                if at >= len(parts) or parts[at] != value:
                    return False
        return True

    return accept


def escrow(machine: Machine, id: str, now: int) -> dict[str, Any]:
    """A deployment's funds as they would be settled ``now``, and how long they last.

    ``ticks_left`` counts charged blocks from now on; ``period_s`` is how long one is. None when
    nothing is being paid.
    """
    found = machine.state.escrows.get(id)
    if found is None:
        raise not_found("deployment", id)
    tick = machine.tick_at(machine.height, max(now, machine.time))
    funds, left = found.funds, None
    if found.state == "open" and found.rate:
        funds = max(0, found.funds - found.rate * (tick - found.settled))
        dry = machine.dry_at(found)
        left = max(0, (dry or 0) - 1 - tick)
    return {
        **view(found),
        "funds": money.text(funds),
        "tick": tick,
        "ticks_left": left,
        "period_s": machine.period / 1e9,
    }


def counts(machine: Machine) -> dict[str, Any]:
    """How much of everything there is, and of every denomination."""
    return {
        "supply": {denom: money.text(s.units) for denom, s in machine.state.supply.items()},
        "counts": {
            name: len(rows) for name, rows in machine.state.tables.items() if name != "supply"
        },
    }


def offer(machine: Machine, bid_id: str) -> dict[str, Any]:
    """All a bidder wants to know about an order at once; ``bid`` is None when there is none."""
    state = machine.state
    order = state.orders.get(bid_id.rpartition("/")[0])
    if order is None:
        raise not_found("order", bid_id.rpartition("/")[0])
    group_id = order.id.rpartition("/")[0]
    bid = state.bids.get(bid_id)
    return {
        **view(order),
        "spec": view(state.groups[group_id])["spec"],
        "reclamation_window": state.deployments[group_id.rpartition("/")[0]].reclamation_window,
        "bid": None if bid is None else view(bid),
    }


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise LeaseholdError("bad_id", "an id is text", kind=Kind.MALFORMED) from None
