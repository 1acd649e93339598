"""``leasehold order``: what can be bid on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leasehold.cli.market import JSON, LEDGER, STATE

if TYPE_CHECKING:
    from leasehold.cli.market import Names

app = typer.Typer(help="Orders: groups put out for bids.", no_args_is_help=True)


@app.command("ls")
def list_orders(
    owner: str = typer.Option(None, help="Only of this account."),
    orders: str = typer.Option(None, "--only", help="Only in this state: open, active or closed."),
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """List orders."""
    from leasehold.cli.market import expand, listed

    def row(names: Names, item: dict[str, Any]) -> list[Any]:
        return [names.id(item["id"]), item["state"], item["created"], item["closed"] or "-"]

    listed(
        "orders",
        {"owner": expand(owner) if owner else None, "state": orders},
        ["ORDER", "STATE", "CREATED", "CLOSED"],
        row,
        ledger=ledger,
        state=state,
        as_json=as_json,
    )


@app.command()
def show(
    id: str = typer.Argument(help="OWNER/DSEQ/GSEQ/OSEQ."),
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Show what an order asks for, and who bid on it."""
    from leasehold.cli.market import Names, ask, expand
    from leasehold.cli.state import print_json
    from leasehold.cli.tables import table
    from leasehold.market.ledger import money
    from leasehold.model.market import OrderId

    oid = OrderId.parse(expand(id))

    async def work(client: Any) -> dict[str, Any]:
        found = await client.get("orders", oid)
        found["spec"] = (await client.get("groups", oid.group))["spec"]
        named = {f: getattr(oid, f) for f in oid.__struct_fields__}
        found["bids"] = [bid async for bid in client.list("bids", **named)]
        return dict(found)

    found = ask(work, ledger=ledger, state=state)
    if as_json:
        print_json(found)
        return
    names = Names()
    print(f"order {names.id(found['id'])}  {found['state']}  group {found['spec']['name']}")
    for unit in found["spec"]["resources"]:
        given, price = unit["resource"], unit["price"]
        most = money.text(money.parse(price["amount"]))
        disk = sum(int(volume["size"]["val"]) for volume in given.get("storage") or [])
        print(
            f"  {unit['count']} × {int(given['cpu']['units']['val']) / 1000:g} cpu, "
            f"{int(given['memory']['size']['val']) >> 20} MiB, {disk >> 20} MiB disk, "
            f"{given['gpu']['units']['val']} gpu, at most {most} {price['denom']} each"
        )
    print()
    rows = [
        [names.address(bid["id"].rpartition("/")[2]), bid["state"], bid["price"], bid["denom"]]
        for bid in found["bids"]
    ]
    table(["BID BY", "STATE", "PRICE", ""], rows, empty="no bids")
