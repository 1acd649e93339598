"""``leasehold bid``: who offers to serve an order, and accepting one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leasehold.cli.market import AS, JSON, LEDGER, STATE, YES

if TYPE_CHECKING:
    from leasehold.cli.market import Names
    from leasehold.market.client import LedgerClient

app = typer.Typer(help="Bids on orders.", no_args_is_help=True)


@app.command("ls")
def list_bids(
    owner: str = typer.Option(None, help="Only on orders of this account."),
    provider: str = typer.Option(None, help="Only by this provider."),
    dseq: int = typer.Option(None, help="Only on this deployment."),
    bids: str = typer.Option(None, "--only", help="Only: open, active, lost or closed."),
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """List bids."""
    from leasehold.cli.market import expand, listed

    def row(names: Names, item: dict[str, Any]) -> list[Any]:
        order, _, bidder = item["id"].rpartition("/")
        price = f"{item['price']} {item['denom']}"
        return [
            names.id(order),
            names.address(bidder),
            item["state"],
            price,
            item["deposit"],
            item["reason"] or "-",
        ]

    filter = {
        "owner": expand(owner) if owner else None,
        "provider": expand(provider) if provider else None,
        "dseq": dseq,
        "state": bids,
    }
    columns = ["ORDER", "PROVIDER", "STATE", "PRICE", "DEPOSIT", "REASON"]
    listed("bids", filter, columns, row, ledger=ledger, state=state, as_json=as_json)


@app.command()
def accept(
    order: str = typer.Argument(help="DSEQ/GSEQ/OSEQ, OWNER/DSEQ/GSEQ/OSEQ, or with /PROVIDER."),
    auto: bool = typer.Option(False, "--auto", help="Take the cheapest open bid."),
    account: str = AS,
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Accept a bid: it becomes a lease, the others are lost."""
    from decimal import Decimal

    from leasehold.cli.market import ask, done, own_id, tenant_key
    from leasehold.core.errors import Kind, LeaseholdError
    from leasehold.model.market import LeaseId, OrderId

    key = tenant_key(account)
    id = own_id(order, key)

    async def cheapest(client: LedgerClient) -> str:
        oid = OrderId.parse(id)
        named = {f: getattr(oid, f) for f in oid.__struct_fields__}
        bids = [b async for b in client.list("bids", state="open", **named)]
        if not bids:
            raise LeaseholdError(
                "no_bids", f"nobody has bid on {oid} so far", kind=Kind.NOT_FOUND, got=id
            )
        if len(bids) > 1 and not auto:
            offers = ", ".join(f"{b['price']} by {b['id'].rpartition('/')[2]}" for b in bids)
            raise LeaseholdError(
                "several_bids",
                f"name the provider, or use --auto for the cheapest: {offers}",
                kind=Kind.CONFLICT,
            )
        return str(min(bids, key=lambda b: (Decimal(b["price"]), b["created"]))["id"])

    async def work(client: LedgerClient) -> tuple[LeaseId, int]:
        lease = LeaseId.parse(id if id.count("/") == 4 else await cheapest(client))
        landed = await client.create_lease(lease)
        return lease, landed.height

    lease, height = ask(work, ledger=ledger, state=state, key=key)
    done(as_json, f"lease {lease}", lease=str(lease), height=height)


@app.command()
def create(
    order: str = typer.Argument(help="OWNER/DSEQ/GSEQ/OSEQ."),
    price: str = typer.Argument(help="Base units a block."),
    deposit: str = typer.Option("500000", help="Deposit, base units."),
    account: str = typer.Option(None, "--as", help="Who bids; default: the provider here."),
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Bid on an order by hand."""
    from leasehold.cli.market import ask, done, expand, provider_key
    from leasehold.model.market import OrderId

    oid, key = OrderId.parse(expand(order)), provider_key(account, state)

    async def work(client: LedgerClient) -> Any:
        return await client.create_bid(oid, price, deposit)

    landed = ask(work, ledger=ledger, state=state, key=key)
    done(as_json, f"bid on {oid}", order=str(oid), price=price, height=landed.height)


@app.command()
def close(
    order: str = typer.Argument(help="OWNER/DSEQ/GSEQ/OSEQ, also with /PROVIDER."),
    reason: int = typer.Option(
        10002, help="10000 unstable, 10001 decommission, 10002 unspecified."
    ),
    account: str = typer.Option(None, "--as", help="Whose bid; default: the provider here."),
    yes: bool = YES,
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Close one's own bid; the lease it became ends with it."""
    from leasehold.cli.confirm import confirm
    from leasehold.cli.market import ask, done, expand, provider_key
    from leasehold.model.market import OrderId

    oid = OrderId.parse("/".join(expand(order).split("/")[:4]))
    key = provider_key(account, state)
    confirm(f"Close the bid on {oid}, and the lease it became?", yes=yes, as_json=as_json)

    async def work(client: LedgerClient) -> None:
        await client.close_bid(oid, reason)

    ask(work, ledger=ledger, state=state, key=key)
    done(as_json, f"closed the bid on {oid}", order=str(oid), reason=reason)
