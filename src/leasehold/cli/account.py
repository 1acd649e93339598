"""``leasehold account``: who a tenant is on the market."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(help="Make and show accounts.", no_args_is_help=True)

GIFT = "500000000"
"""Base units a new account gets from the operator of an embedded market, for its deposits."""


@app.command()
def new(
    name: str = typer.Argument(help="What you call it, as in acme."),
    algorithm: str = typer.Option("secp256k1", help="secp256k1 or ed25519."),
    fund: bool = typer.Option(True, help="Ask the market of this machine for coins to start with."),
    state: Path = typer.Option(None, help="State folder of the provider of this machine."),
    as_json: bool = typer.Option(False, "--json", help="As JSON."),
) -> None:
    """Make an account; its key stays on this machine."""
    from typing import cast

    from leasehold.app.accounts import Accounts
    from leasehold.cli.state import home_folder, print_json
    from leasehold.core.errors import LeaseholdError
    from leasehold.market.accounts.keys import Algorithm

    key = Accounts(home_folder()).new(name, cast(Algorithm, algorithm))
    funded = ""
    if fund:
        from leasehold.cli.client import operator

        try:
            with operator(state) as api:
                api.post("/v1/market/gifts", {"to": key.address, "amount": GIFT})
            funded = GIFT
        except LeaseholdError as error:
            # The account is made either way: it can be funded by any transfer later.
            if not as_json:
                print(f"not funded: {error.message}")
    if as_json:
        print_json({"name": name, "address": key.address, "funded": funded})
        return
    print(f"account {name}: {key.address}")
    if funded:
        print(f"funded with {int(funded):,} uakt by the market of this machine")


@app.command("ls")
def list_accounts(as_json: bool = typer.Option(False, "--json", help="As JSON.")) -> None:
    """List the accounts of this user."""
    from leasehold.app.accounts import Accounts
    from leasehold.cli.state import home_folder, print_json

    accounts = Accounts(home_folder())
    rows = [{"name": name, "address": accounts.address(name)} for name in accounts.names()]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        print(f"{row['name']:20} {row['address']}")
    if not rows:
        print("no account yet; make one with: leasehold account new NAME")


@app.command()
def show(
    name: str = typer.Argument(None, help="The account; default: the first."),
    state: Path = typer.Option(None, help="State folder of the provider of this machine."),
    as_json: bool = typer.Option(False, "--json", help="As JSON."),
) -> None:
    """Show an account's address and balance."""
    import asyncio

    from leasehold.app.accounts import Accounts
    from leasehold.cli.state import home_folder, print_json, running
    from leasehold.market.client import LedgerClient

    found, key = Accounts(home_folder()).key(name)

    async def ask() -> dict[str, str]:
        async with LedgerClient(running(state).ledger) as ledger:
            return await ledger.balance(key.address)

    balance = asyncio.run(ask())
    if as_json:
        print_json({"name": found, "address": key.address, "balance": balance})
        return
    print(f"account {found}: {key.address}")
    for denom, amount in balance.items() or {"uakt": "0"}.items():
        print(f"  {amount} {denom}")


@app.command()
def send(
    to: str = typer.Argument(help="Whom: an account's name or an address."),
    amount: str = typer.Argument(help="Base units."),
    account: str = typer.Option(None, "--as", help="Who pays; default: the first account."),
    ledger: str = typer.Option(None, help="RPC of the market; default: of this machine."),
    state: Path = typer.Option(None, help="State folder of the provider of this machine."),
    as_json: bool = typer.Option(False, "--json", help="As JSON."),
) -> None:
    """Send coins to another account; one that is new is opened by it."""
    from leasehold.cli.market import ask, done, expand, tenant_key
    from leasehold.market.client import Landed, LedgerClient

    key, address = tenant_key(account), expand(to)

    async def work(client: LedgerClient) -> Landed:
        return await client.transfer(address, amount)

    landed = ask(work, ledger=ledger, state=state, key=key)
    text = f"sent {amount} to {address}, height {landed.height}"
    done(as_json, text, to=address, amount=amount, height=landed.height, hash=landed.hash)
