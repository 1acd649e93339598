"""``leasehold dashboard``: a link that opens the dashboard signed in, or a token to paste."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(add_completion=False)


@app.command()
def dashboard(
    account: str = typer.Option(None, "--as", help="As this account; default: the operator."),
    token: bool = typer.Option(False, help="Only print a token to paste, as a tenant elsewhere."),
    hours: float = typer.Option(12.0, min=0.1, max=720, help="How long such a token holds."),
    browser: bool = typer.Option(False, "--open", help="Open it in the browser, too."),
    state: Path = typer.Option(None, help="State folder of the provider of this machine."),
    as_json: bool = typer.Option(False, "--json", help="As JSON."),
) -> None:
    """Print a link to the dashboard of this machine that signs you in. Do not share it."""
    import time
    import webbrowser

    from leasehold.app.accounts import Accounts
    from leasehold.cli.state import home_folder, print_json, running, state_folder
    from leasehold.dashboard.sessions import Credential, Sessions
    from leasehold.market.accounts import sign_token

    now = time.time()
    if token:
        name, key = Accounts(home_folder()).key(account)
        signed = sign_token(key, now, lifetime=hours * 3600)
        print_json({"account": name, "token": signed}) if as_json else print(signed)
        return
    found = running(state)
    if account is None:
        secret = (state_folder(state) / "operator.token").read_text().strip()
        credential = Credential("operator", secret)
    else:
        name, key = Accounts(home_folder()).key(account)
        credential = Credential("account", key.secret.hex(), key.address, name, key.algorithm)
    session = Sessions(Path(found.state) / "sessions").open(credential, now)
    url = f"{found.gateway}/#session={session}"
    if as_json:
        print_json({"url": url, "as": account or "operator"})
    else:
        print(url)
    if browser:
        webbrowser.open(url)
