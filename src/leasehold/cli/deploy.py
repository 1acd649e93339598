"""``leasehold deploy FILE``: from an SDL file to a URL that answers."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(add_completion=False)


@app.command()
def deploy(
    file: Path = typer.Argument(help="The SDL file."),
    account: str = typer.Option(None, "--as", help="The account that pays; default: the first."),
    deposit: str = typer.Option("5000000", help="Base units put aside for the lease."),
    ledger: str = typer.Option(None, help="RPC of the market; default: of this machine."),
    state: Path = typer.Option(None, help="State folder of the provider of this machine."),
    wait: bool = typer.Option(True, help="Wait until the workload answers."),
    as_json: bool = typer.Option(False, "--json", help="As JSON, when it is done."),
) -> None:
    """Deploy an SDL file: order, accept the cheapest bid, send the manifest, wait for an answer."""
    import asyncio
    import sys
    import time

    from leasehold.app.accounts import Accounts
    from leasehold.app.tenant import Deployed, Stage, Tenant
    from leasehold.cli.state import home_folder, print_json, running
    from leasehold.core.errors import Kind, LeaseholdError
    from leasehold.model import sdl

    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LeaseholdError(
            "file_unreadable", f"cannot read {file}: {reason}", kind=Kind.MALFORMED, path=str(file)
        ) from None
    loaded = sdl.load(text)
    accounts = Accounts(home_folder())
    _name, key = accounts.key(account)
    url = ledger or running(state).ledger
    began = time.time()

    def show(stage: Stage) -> None:
        if not as_json:
            ms = (stage.at - began) * 1000
            print(f"  {ms:8.0f} ms  {stage.name:20} {stage.detail}", file=sys.stderr)

    async def go() -> list[Deployed]:
        async with Tenant(key, url) as tenant:
            return await tenant.deploy(loaded, deposit=deposit, on_stage=show, wait=wait)

    results = asyncio.run(go())
    if as_json:
        print_json([vars_of(result) for result in results])
    for result in results:
        if result.state == "failed" or (wait and result.state != "healthy"):
            raise LeaseholdError(
                f"deploy_{result.state}",
                f"{short(accounts, result.lease)} is {result.state}: {result.unmet}",
                kind=Kind.INVALID if result.state == "failed" else Kind.TIMEOUT,
                got=result.state,
            )
        if not as_json:
            print(f"{short(accounts, result.lease)} is {result.state}")
            for uri in result.uris:
                print(f"  {uri}")


def vars_of(result: object) -> object:
    import msgspec

    return msgspec.to_builtins(result)


def short(accounts: object, lease: str) -> str:
    """``acme/1`` for a lease id."""
    from leasehold.app.accounts import Accounts
    from leasehold.model.market import LeaseId

    assert isinstance(accounts, Accounts)
    id = LeaseId.parse(lease)
    tail = "" if (id.gseq, id.oseq) == (1, 1) else f"/{id.gseq}/{id.oseq}"
    return f"{accounts.name_of(id.owner)}/{id.dseq}{tail}"
