"""What the market's commands share: which ledger, whose key, short names, tables.

Not a command itself. ``acme/1`` is deployment 1 of the account ``acme``; tables write accounts by
name and shorten addresses, ``--json`` never does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

if TYPE_CHECKING:
    from leasehold.market.accounts import Key
    from leasehold.market.client import LedgerClient

T = TypeVar("T")

AS = typer.Option(None, "--as", help="The account that signs; default: the first.")
LEDGER = typer.Option(None, "--ledger", help="RPC of the market; default: of this machine.")
STATE = typer.Option(None, "--state", help="State folder of the provider of this machine.")
JSON = typer.Option(False, "--json", help="As JSON.")
YES = typer.Option(False, "--yes", "-y", help="Do not ask.")


def ledger_url(ledger: str | None, state: Path | None) -> str:
    from leasehold.cli.state import running

    return ledger or running(state).ledger


def ask(
    work: Callable[[LedgerClient], Awaitable[T]],
    *,
    ledger: str | None,
    state: Path | None,
    key: Key | None = None,
) -> T:
    """Run ``work`` with a client of the ledger; its result."""
    import asyncio

    from leasehold.market.client import LedgerClient

    async def go() -> T:
        async with LedgerClient(ledger_url(ledger, state), key) as client:
            return await work(client)

    return asyncio.run(go())


def tenant_key(name: str | None) -> Key:
    """The key of the account ``name``, or of the first."""
    from leasehold.app.accounts import Accounts
    from leasehold.cli.state import home_folder

    return Accounts(home_folder()).key(name)[1]


def provider_key(name: str | None, state: Path | None) -> Key:
    """The key of the provider of this machine, or of the account ``name``."""
    from leasehold.cli.state import state_folder
    from leasehold.market.accounts import Key

    return tenant_key(name) if name else Key.load(state_folder(state) / "provider.key")


def expand(id: str) -> str:
    """An id whose first and last parts may be account names, as the market writes it."""
    from leasehold.app.accounts import Accounts
    from leasehold.cli.state import home_folder

    accounts = Accounts(home_folder())
    parts = id.split("/")
    for at in (0, 4):
        if at < len(parts) and parts[at]:
            parts[at] = accounts.address(parts[at])
    return "/".join(parts)


def own_id(id: str, key: Key) -> str:
    """``7`` is the signer's deployment 7; anything else is expanded."""
    return f"{key.address}/{id}" if id.partition("/")[0].isdigit() else expand(id)


class Names:
    """Addresses and ids for people."""

    def __init__(self) -> None:
        from leasehold.app.accounts import Accounts
        from leasehold.cli.state import home_folder

        accounts = Accounts(home_folder())
        self._names = {accounts.address(name): name for name in accounts.names()}

    def address(self, address: str) -> str:
        if address in self._names:
            return self._names[address]
        return f"{address[:9]}…{address[-4:]}" if len(address) > 16 else address

    def id(self, id: str) -> str:
        return "/".join(self.address(part) for part in id.split("/"))


def listed(
    kind: str,
    filter: Mapping[str, Any],
    columns: Sequence[str],
    row: Callable[[Names, dict[str, Any]], Sequence[Any]],
    *,
    ledger: str | None,
    state: Path | None,
    as_json: bool,
) -> None:
    """List objects of a table of the ledger."""
    from leasehold.cli.state import print_json
    from leasehold.cli.tables import table

    wanted = {name: value for name, value in filter.items() if value not in (None, "")}

    async def work(client: LedgerClient) -> list[dict[str, Any]]:
        return [item async for item in client.list(kind, **wanted)]

    items = ask(work, ledger=ledger, state=state)
    if as_json:
        print_json(items)
        return
    names = Names()
    rows = [[*row(names, item), item["id"]] for item in items]
    table([*columns, "+ID"], rows, empty=f"no {kind}")


def done(as_json: bool, text: str, **fields: Any) -> None:
    """Say what was done."""
    from leasehold.cli.state import print_json

    if as_json:
        print_json(fields)
    else:
        print(text)


def read_text(file: Path) -> str:
    """A file's text, or the house error."""
    from leasehold.core.errors import Kind, LeaseholdError

    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LeaseholdError(
            "file_unreadable", f"cannot read {file}: {reason}", kind=Kind.MALFORMED, path=str(file)
        ) from None
