"""``leasehold provider``: who serves leases on the market."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leasehold.cli.market import AS, JSON, LEDGER, STATE, YES

if TYPE_CHECKING:
    from leasehold.cli.market import Names
    from leasehold.market.client import LedgerClient

app = typer.Typer(help="Providers and what auditors say of them.", no_args_is_help=True)


@app.command("ls")
def list_providers(ledger: str = LEDGER, state: Path = STATE, as_json: bool = JSON) -> None:
    """List providers."""
    from leasehold.cli.market import listed

    def row(names: Names, item: dict[str, Any]) -> list[Any]:
        attributes = ", ".join(f"{a['key']}={a['value']}" for a in item["attributes"])
        return [names.address(item["id"]), item["host_uri"], attributes or "-"]

    columns = ["PROVIDER", "URL", "ATTRIBUTES"]
    listed("providers", {}, columns, row, ledger=ledger, state=state, as_json=as_json)


@app.command()
def show(
    address: str = typer.Argument(None, help="Default: the provider of this machine."),
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Show a provider's record, balance, live leases and audits."""
    from leasehold.cli.market import Names, ask, expand
    from leasehold.cli.state import print_json, running
    from leasehold.cli.tables import table

    wanted = expand(address) if address else running(state).provider

    async def work(client: LedgerClient) -> dict[str, Any]:
        found = await client.get("providers", wanted)
        found["balance"] = await client.balance(wanted)
        found["leases"] = [i async for i in client.list("leases", provider=wanted, state="live")]
        found["audits"] = [i async for i in client.list("audits", provider=wanted)]
        return found

    found = ask(work, ledger=ledger, state=state)
    if as_json:
        print_json(found)
        return
    names = Names()
    print(f"provider {found['id']}\n  url {found['host_uri']}")
    for attribute in found["attributes"]:
        print(f"  {attribute['key']} = {attribute['value']}")
    for denom, amount in found["balance"].items():
        print(f"  balance {amount} {denom}")
    for audit in found["audits"]:
        signed = ", ".join(a["key"] for a in audit["attributes"])
        print(f"  {names.address(audit['id'].rpartition('/')[2])} vouches for {signed}")
    rows = [
        [names.id(lease["id"].rpartition("/")[0]), lease["state"], lease["price"], lease["denom"]]
        for lease in found["leases"]
    ]
    print()
    table(["LEASE", "STATE", "PRICE", ""], rows, empty="no live leases")


@app.command("set")
def set_record(
    url: str = typer.Argument(help="Where tenants reach the provider: https://host:port."),
    attribute: list[str] = typer.Option([], "--attribute", "-a", help="KEY=VALUE, repeated."),
    account: str = typer.Option(None, "--as", help="Default: the provider of this machine."),
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Register as a provider, or change the record."""
    from leasehold.cli.market import ask, done, provider_key

    key, attributes = provider_key(account, state), _pairs(attribute)

    async def work(client: LedgerClient) -> None:
        await client.set_provider(url, attributes)

    ask(work, ledger=ledger, state=state, key=key)
    done(as_json, f"provider {key.address}", provider=key.address, attributes=attributes)


@app.command()
def audit(
    provider: str = typer.Argument(help="The provider to vouch for."),
    attribute: list[str] = typer.Option([], "--attribute", "-a", help="KEY=VALUE, repeated."),
    revoke: bool = typer.Option(False, help="Take everything signed back."),
    account: str = AS,
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Sign a provider's attributes as an auditor, or take that back."""
    from leasehold.cli.market import ask, done, expand, tenant_key

    key, address, attributes = tenant_key(account), expand(provider), _pairs(attribute)

    async def work(client: LedgerClient) -> Any:
        if revoke:
            return await client.delete_audit(address)
        return await client.sign_attributes(address, attributes)

    landed = ask(work, ledger=ledger, state=state, key=key)
    verb = "revoked" if revoke else "signed"
    done(as_json, f"{verb}: {address}", provider=address, height=landed.height, verb=verb)


def _pairs(texts: list[str]) -> dict[str, str]:
    from leasehold.core.errors import Kind, LeaseholdError

    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise LeaseholdError(
                "bad_attribute", f"{text!r} is not KEY=VALUE", kind=Kind.MALFORMED, got=text
            )
        pairs[key] = value
    return pairs


@app.command()
def limits(state: Path = STATE, as_json: bool = JSON) -> None:
    """Show what this machine offers, what of it is promised, and what is left.

    To offer only part of the machine set deploy.offer_cpu, deploy.offer_memory and
    deploy.offer_storage (shares of 1).
    """
    _offers(_operate("GET", "/v1/inventory", state), as_json)


@app.command()
def pause(
    reason: str = typer.Option("this provider is paused by its operator", help="Told to bidders."),
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Make no new bids; leases go on. Holds over restarts."""
    _offers(_operate("POST", "/v1/provider/pause", state, {"reason": reason}), as_json)


@app.command()
def resume(state: Path = STATE, as_json: bool = JSON) -> None:
    """Bid again."""
    found = _operate("POST", "/v1/provider/resume", state)
    if not (as_json or found["unavailable"]):
        print("bidding again")
    _offers(found, as_json)


@app.command()
def drain(
    reason: str = typer.Option("this provider is being shut down", help="Told to bidders."),
    yes: bool = YES,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Pause, and close every lease as decommissioned."""
    from leasehold.cli.confirm import confirm
    from leasehold.cli.state import print_json

    confirm("Close every lease of this provider?", yes=yes, as_json=as_json)
    closed = _operate("POST", "/v1/provider/drain", state, {"reason": reason})
    if as_json:
        print_json(closed)
        return
    for lease in closed["closed"]:
        print(f"closed {lease}")
    print(f"{_leases(len(closed['closed']))} closed; nothing new is taken")


@app.command()
def clear(
    purge: bool = typer.Option(False, help="Delete the state folder, too: keys, log, volumes."),
    yes: bool = YES,
    state: Path = STATE,
    config: Path = typer.Option(None, help="Settings file; default leasehold.toml in the folder."),
    as_json: bool = JSON,
) -> None:
    """End everything that a stopped provider left running on this machine.

    Workloads, ingress, networks and services of the node go. Leases are not closed by it: that is
    ``drain``, before the provider is stopped. Without ``--purge`` the next ``up`` brings back what
    is wanted. Exit code 1 when something is left.
    """
    import asyncio

    from leasehold.app.clearing import clear as clear_machine
    from leasehold.app.settings import read
    from leasehold.cli.confirm import confirm
    from leasehold.cli.state import print_json, state_folder
    from leasehold.core import logs

    folder = state_folder(state)
    lost = ", and delete that folder with the tenants' volumes in it" if purge else ""
    confirm(f"End everything that runs from {folder}{lost}?", yes=yes, as_json=as_json)
    logs.configure("error", json=False)
    settings = read(folder, file=config).values
    cleared = asyncio.run(clear_machine(folder, settings, purge=purge))
    if as_json:
        print_json(cleared)
    else:
        for what in cleared.removed or ["nothing: nothing ran"]:
            print(f"removed {what}")
        for what in cleared.left:
            print(f"left behind {what}")
        if cleared.open_leases and not purge:
            print(f"{_leases(len(cleared.open_leases))} still open: the next `up` goes on")
    raise typer.Exit(1 if cleared.left else 0)


@app.command()
def selftest(
    image: str = typer.Option(
        "", help="An image that serves HTTP on 8080, instead of a built one."
    ),
    account: str = typer.Option(
        "", "--as", help="An account with funds; default: a new one, funded by the operator."
    ),
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Take a real lease from this provider and check every step of it, from order to removal."""
    import asyncio

    import msgspec

    from leasehold.cli.state import print_json, running

    report = asyncio.run(_selftest(running(state), image, account, state, quiet=as_json))
    if as_json:
        print_json(msgspec.to_builtins(report))
    elif report.error is not None:
        typer.echo(f"{report.error['code']}: {report.error['message']}", err=True)
    else:
        print("this provider serves leases")
    raise typer.Exit(0 if report.ok else 1)


async def _selftest(found: Any, image: str, account: str, state: Path, *, quiet: bool) -> Any:
    import asyncio

    from leasehold.app.selftest import SelfTest, Step
    from leasehold.cli.client import operator
    from leasehold.cli.market import tenant_key

    def tell(step: Step) -> None:
        if not quiet:
            print(
                f"{'ok' if step.ok else 'FAILED':6} {step.name:26} {step.ms:9.1f} ms  {step.detail}"
            )

    with operator(state) as api:

        async def ask(method: str, path: str, body: Any) -> Any:
            return await asyncio.to_thread(api.request, method, path, json=body)

        key = tenant_key(account) if account else None
        return await SelfTest(found, ask, image=image, key=key, tell=tell).run()


def _leases(count: int) -> str:
    return "1 lease is" if count == 1 else f"{count or 'no'} leases are"


def _operate(method: str, path: str, state: Path, body: Any = None) -> Any:
    from leasehold.cli.client import operator

    with operator(state) as api:
        return api.request(method, path, json=body)


def _offers(found: dict[str, Any], as_json: bool) -> None:
    from leasehold.cli.state import print_json

    if as_json:
        print_json(found)
        return
    if found["unavailable"]:
        print(f"paused: {found['unavailable']}")
    for node in found["nodes"]:
        print(f"node {node['name']}")
        for kind, unit in (("cpu", 1000), ("memory", 1 << 30), ("storage", 1 << 30)):
            name = {"cpu": "cores"}.get(kind, "GiB")
            left, all_ = node["available"][kind] / unit, node["offered"][kind] / unit
            print(f"  {kind:8} {left:10.2f} of {all_:.2f} {name} left")
    print(f"{len(found['pending'])} bids and {len(found['leased'])} leases hold the rest")


backup = typer.Typer(help="State and keys in one file.", no_args_is_help=True)
app.add_typer(backup, name="backup")


@backup.command("create")
def backup_create(
    file: Path = typer.Argument(..., help="Where to write it; it holds keys, keep it safe."),
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Write the state of the stopped provider of this machine to FILE."""
    from leasehold.app.backup import create
    from leasehold.cli.state import print_json, state_folder

    names = create(state_folder(state), file.absolute())
    if as_json:
        print_json({"file": str(file), "files": names})
    else:
        print(f"{len(names)} files in {file}; it holds the provider's keys")


@backup.command("restore")
def backup_restore(
    file: Path = typer.Argument(..., help="What `backup create` wrote."),
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Make this machine the provider whose state is in FILE."""
    from leasehold.app.backup import restore
    from leasehold.cli.state import print_json, state_folder

    names = restore(file, state_folder(state))
    if as_json:
        print_json({"file": str(file), "files": names})
    else:
        print(f"{len(names)} files restored; `leasehold up` brings the leases up here")
