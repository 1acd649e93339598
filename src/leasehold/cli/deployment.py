"""``leasehold deployment``: what tenants asked for, on the market alone.

``leasehold deploy`` does all of it in one go; these are the single steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leasehold.cli.market import AS, JSON, LEDGER, STATE, YES

if TYPE_CHECKING:
    from leasehold.cli.market import Names
    from leasehold.market.client import LedgerClient

app = typer.Typer(help="Deployments, their groups and funds.", no_args_is_help=True)


@app.command("ls")
def list_deployments(
    owner: str = typer.Option(None, help="Only of this account."),
    deployments: str = typer.Option(None, "--only", help="Only in this state: active or closed."),
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """List deployments."""
    from leasehold.cli.market import expand, listed

    def row(names: Names, item: dict[str, Any]) -> list[Any]:
        return [
            names.id(item["id"]),
            item["state"],
            item["groups"],
            item["created"],
            item["hash"][:12],
        ]

    listed(
        "deployments",
        {"owner": expand(owner) if owner else None, "state": deployments},
        ["DEPLOYMENT", "STATE", "GROUPS", "HEIGHT", "MANIFEST"],
        row,
        ledger=ledger,
        state=state,
        as_json=as_json,
    )


@app.command()
def show(
    id: str = typer.Argument(help="OWNER/DSEQ, or DSEQ of the first account."),
    account: str = AS,
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Show a deployment with its groups, orders, bids, leases and funds."""
    from leasehold.cli.market import Names, ask, expand, own_id, tenant_key
    from leasehold.cli.state import print_json
    from leasehold.cli.tables import table

    wanted = own_id(id, tenant_key(account)) if id.isdigit() else expand(id)

    async def work(client: LedgerClient) -> dict[str, Any]:
        found = await client.get("deployments", wanted)
        owner, _, dseq = wanted.partition("/")
        for kind in ("groups", "orders", "bids", "leases"):
            found[kind] = [i async for i in client.list(kind, owner=owner, dseq=int(dseq))]
        found["escrow"] = await client.escrow(wanted)
        return found

    found = ask(work, ledger=ledger, state=state)
    if as_json:
        print_json(found)
        return
    names, escrow = Names(), found["escrow"]
    print(f"deployment {names.id(found['id'])}  {found['state']}  manifest {found['hash'][:16]}")
    left = escrow["ticks_left"]
    lasts = "" if left is None else f", lasts {_duration(left * escrow['period_s'])}"
    spent = f"{escrow['spent']} spent"
    print(f"funds {escrow['funds']} {escrow['denom']} ({escrow['state']}), {spent}{lasts}\n")
    rows = [
        *([names.id(g["id"]), "group", g["state"], g["spec"]["name"]] for g in found["groups"]),
        *([names.id(o["id"]), "order", o["state"], ""] for o in found["orders"]),
        *(
            [names.id(b["id"]), "bid", b["state"], f"{b['price']} {b['denom']}"]
            for b in found["bids"]
        ),
        *(
            [names.id(lease["id"]), "lease", lease["state"], f"{lease['price']} {lease['denom']}"]
            for lease in found["leases"]
        ),
    ]
    table(["ID", "KIND", "STATE", ""], rows, empty="nothing")


@app.command()
def create(
    file: Path = typer.Argument(help="The SDL file."),
    account: str = AS,
    deposit: str = typer.Option("5000000", help="Base units put aside."),
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Put an SDL file's groups out for bids; accepting one is `leasehold bid accept`."""
    from leasehold.cli.market import ask, done, read_text, tenant_key
    from leasehold.model import sdl

    loaded = sdl.load(read_text(file))
    key = tenant_key(account)

    async def work(client: LedgerClient) -> Any:
        return await client.create_deployment(loaded.groups(), loaded.hash, deposit)

    made = ask(work, ledger=ledger, state=state, key=key)
    done(as_json, f"deployment {made}", id=str(made), dseq=made.dseq)


@app.command()
def update(
    id: str = typer.Argument(help="DSEQ or OWNER/DSEQ."),
    file: Path = typer.Argument(help="The changed SDL file."),
    account: str = AS,
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Announce a new manifest hash. Groups cannot change."""
    from leasehold.cli.market import ask, done, own_id, read_text, tenant_key
    from leasehold.model import sdl
    from leasehold.model.market import DeploymentId

    loaded, key = sdl.load(read_text(file)), tenant_key(account)
    did = DeploymentId.parse(own_id(id, key))

    async def work(client: LedgerClient) -> Any:
        return await client.update_deployment(did.dseq, loaded.hash)

    landed = ask(work, ledger=ledger, state=state, key=key)
    done(as_json, f"updated {did}", id=str(did), height=landed.height)


@app.command()
def deposit(
    id: str = typer.Argument(help="DSEQ or OWNER/DSEQ."),
    amount: str = typer.Argument(help="Base units to add."),
    account: str = AS,
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Add funds to a deployment."""
    from leasehold.cli.market import ask, done, own_id, tenant_key
    from leasehold.model.market import DeploymentId

    key = tenant_key(account)
    did = DeploymentId.parse(own_id(id, key))

    async def work(client: LedgerClient) -> dict[str, Any]:
        await client.deposit(did, amount)
        return await client.escrow(did)

    escrow = ask(work, ledger=ledger, state=state, key=key)
    done(as_json, f"{did} has {escrow['funds']} {escrow['denom']}", **escrow)


@app.command()
def close(
    id: str = typer.Argument(help="DSEQ or OWNER/DSEQ."),
    account: str = AS,
    yes: bool = YES,
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Close a deployment with everything in it; the rest of its funds comes back."""
    from leasehold.cli.confirm import confirm
    from leasehold.cli.market import ask, done, own_id, tenant_key
    from leasehold.model.market import DeploymentId

    key = tenant_key(account)
    did = DeploymentId.parse(own_id(id, key))
    confirm(f"Close {did} and end its leases?", yes=yes, as_json=as_json)

    async def work(client: LedgerClient) -> Any:
        return await client.close_deployment(did.dseq)

    landed = ask(work, ledger=ledger, state=state, key=key)
    done(as_json, f"closed {did}", id=str(did), height=landed.height)


@app.command()
def group(
    verb: str = typer.Argument(help="pause, start or close."),
    id: str = typer.Argument(help="DSEQ/GSEQ or OWNER/DSEQ/GSEQ."),
    account: str = AS,
    yes: bool = YES,
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Pause a group (its lease ends), start it again (new bids), or close it."""
    from leasehold.cli.confirm import confirm
    from leasehold.cli.market import ask, done, own_id, tenant_key
    from leasehold.core.errors import Kind, LeaseholdError
    from leasehold.model.market import GroupId

    key = tenant_key(account)
    gid = GroupId.parse(own_id(id, key))
    if verb not in ("pause", "start", "close"):
        raise LeaseholdError(
            "bad_verb", "a group can be paused, started or closed", kind=Kind.MALFORMED, got=verb
        )
    if verb != "start":
        confirm(f"{verb.capitalize()} {gid} and end its lease?", yes=yes, as_json=as_json)

    async def work(client: LedgerClient) -> Any:
        return await getattr(client, f"{verb}_group")(gid)

    landed = ask(work, ledger=ledger, state=state, key=key)
    done(as_json, f"{verb}: {gid}", id=str(gid), height=landed.height)


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
