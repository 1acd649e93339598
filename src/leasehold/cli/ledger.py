"""``leasehold ledger``: the embedded market itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leasehold.cli.market import JSON, LEDGER, STATE

if TYPE_CHECKING:
    from leasehold.market.client import LedgerClient

app = typer.Typer(help="The embedded ledger: status, export, import, replay.", no_args_is_help=True)


@app.command()
def status(ledger: str = LEDGER, state: Path = STATE, as_json: bool = JSON) -> None:
    """Show the ledger's height, hashes, supply and how much is on it."""
    from leasehold.cli.market import ask
    from leasehold.cli.state import print_json

    async def work(client: LedgerClient) -> dict[str, Any]:
        said = await client.status()
        counts = await client.ask("/counts/get")
        sync = said["sync_info"]
        return {
            "chain_id": said["node_info"]["network"],
            "rpc": client.url,
            "height": int(sync["latest_block_height"]),
            "time": sync["latest_block_time"],
            "block_hash": sync["latest_block_hash"],
            "app_hash": sync["latest_app_hash"],
            **counts,
        }

    found = ask(work, ledger=ledger, state=state)
    if as_json:
        print_json(found)
        return
    for name in ("chain_id", "rpc", "height", "time", "block_hash", "app_hash"):
        print(f"{name:12} {found[name]}")
    for denom, amount in found["supply"].items():
        print(f"{'supply':12} {amount} {denom}")
    for name, count in found["counts"].items():
        print(f"{name:12} {count}")


@app.command()
def export(
    file: Path = typer.Argument(help="Where to write it."),
    history: bool = typer.Option(False, help="All blocks instead of the state they lead to."),
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Write the state, or the whole history, to a file of JSON lines."""
    import os

    from leasehold.cli.market import done, ledger_url

    url = f"{ledger_url(ledger, state)}/{'history' if history else 'export'}"
    new = file.with_name(f".{file.name}.new")
    lines = 0
    with new.open("wb") as out:
        for line in _lines_of(url):
            out.write(line + b"\n")
            lines += 1
        out.flush()
        os.fsync(out.fileno())
    new.replace(file)
    done(as_json, f"wrote {lines} lines to {file}", file=str(file), lines=lines)


@app.command("import")
def take_over(
    file: Path = typer.Argument(help="A file made by `leasehold ledger export`."),
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Let a new provider go on with an exported ledger; before its first `leasehold up`."""
    from leasehold.cli.market import done, read_text
    from leasehold.cli.state import state_folder
    from leasehold.core.errors import Kind, LeaseholdError
    from leasehold.market.ledger.export import genesis_of
    from leasehold.market.ledger.service import IMPORT

    folder = state_folder(state)
    if (folder / "events.sqlite3").exists():
        raise LeaseholdError(
            "ledger_exists",
            f"{folder} has a ledger already; import into a new state folder",
            kind=Kind.CONFLICT,
            got=folder,
        )
    text = read_text(file)
    genesis = genesis_of(text.encode())
    (folder / "ledger").mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / "ledger" / IMPORT).write_text(text)
    height = genesis.initial_height - 1
    done(as_json, f"{folder} goes on at height {height}", state=str(folder), height=height)


@app.command()
def replay(
    file: Path = typer.Argument(None, help="A history from `export --history`; default: live."),
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Run the whole history again: signatures, links and the state after every block must fit."""
    import msgspec

    from leasehold.cli.market import done, ledger_url
    from leasehold.market.ledger import export as exports

    if file is None:
        lines: Iterator[bytes] = _lines_of(f"{ledger_url(ledger, state)}/history")
    else:
        lines = iter(file.read_bytes().splitlines())
    found = exports.replay(lines)
    text = f"{found.blocks} blocks with {found.txs} transactions fit; state {found.digest[:16]}"
    done(as_json, text, **msgspec.to_builtins(found))


def _lines_of(url: str) -> Iterator[bytes]:
    import httpx

    from leasehold.core.errors import unavailable

    try:
        with httpx.stream("GET", url, timeout=600, trust_env=False) as response:
            response.raise_for_status()
            yield from (line.encode() for line in response.iter_lines() if line)
    except httpx.HTTPError as error:
        raise unavailable("ledger_unreachable", f"{url} does not answer: {error}") from None
