"""``leasehold cert``: client certificates by which tenants prove themselves to providers (mTLS)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leasehold.cli.market import AS, JSON, LEDGER, STATE, YES

if TYPE_CHECKING:
    from leasehold.cli.market import Names
    from leasehold.market.client import LedgerClient

app = typer.Typer(help="Client certificates.", no_args_is_help=True)

VALID_DAYS = 365
"""How long a certificate made here is valid."""


@app.command("ls")
def list_certificates(
    owner: str = typer.Option(None, help="Only of this account."),
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """List certificates."""
    from leasehold.cli.market import expand, listed

    def row(names: Names, item: dict[str, Any]) -> list[Any]:
        address, _, serial = item["id"].partition("/")
        return [names.address(address), item["state"], serial]

    filter = {"owner": expand(owner) if owner else None}
    columns = ["ACCOUNT", "STATE", "SERIAL"]
    listed("certificates", filter, columns, row, ledger=ledger, state=state, as_json=as_json)


@app.command()
def new(
    out: Path = typer.Argument(help="Folder for client.crt and client.key."),
    account: str = AS,
    days: int = typer.Option(VALID_DAYS, help="Days it is valid."),
    publish: bool = typer.Option(True, help="Register it on the market."),
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Make a client certificate for an account and register it."""
    import time

    from leasehold.cli.market import ask, done, tenant_key
    from leasehold.market.accounts.certificates import make_certificate, save_certificate

    key = tenant_key(account)
    certificate, private = make_certificate(key.address, time.time(), days)
    save_certificate(out, certificate, private)
    serial = ""
    if publish:

        async def work(client: LedgerClient) -> str:
            return await client.create_certificate(certificate)

        serial = ask(work, ledger=ledger, state=state, key=key)
    text = f"wrote {out}/client.crt and client.key" + (f", serial {serial}" if serial else "")
    done(as_json, text, account=key.address, serial=serial, folder=str(out))


@app.command()
def publish(
    file: Path = typer.Argument(help="A self-signed certificate in PEM."),
    account: str = AS,
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Register a certificate made elsewhere."""
    from leasehold.cli.market import ask, done, read_text, tenant_key

    key, pem = tenant_key(account), read_text(file)

    async def work(client: LedgerClient) -> str:
        return await client.create_certificate(pem)

    serial = ask(work, ledger=ledger, state=state, key=key)
    done(as_json, f"registered, serial {serial}", account=key.address, serial=serial)


@app.command()
def revoke(
    serial: str = typer.Argument(help="The serial, from `leasehold cert ls`."),
    account: str = AS,
    yes: bool = YES,
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Revoke a certificate; providers refuse it from then on."""
    from leasehold.cli.confirm import confirm
    from leasehold.cli.market import ask, done, tenant_key

    key = tenant_key(account)
    confirm(f"Revoke certificate {serial} for ever?", yes=yes, as_json=as_json)

    async def work(client: LedgerClient) -> Any:
        return await client.revoke_certificate(serial)

    landed = ask(work, ledger=ledger, state=state, key=key)
    done(as_json, f"revoked {serial}", account=key.address, serial=serial, height=landed.height)
