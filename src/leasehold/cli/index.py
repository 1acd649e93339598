"""``leasehold index``: blocks and transactions of chains."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import typer

app = typer.Typer(
    help="Blocks and transactions of chains: fetch, sync, search. Chains are read, never written.",
    no_args_is_help=True,
)

MANAGER = typer.Option(
    "http://127.0.0.1:8085", "--manager", envvar="LEASEHOLD_MANAGER", help="A manager's URL."
)
NETWORK = typer.Option("cosmos", help="Network: cosmos or ledger.")
RPC = typer.Option(..., help="URL of the chain's CometBFT RPC.")
JSON = typer.Option(False, "--json", help="Print JSON.")


@app.command()
def status(manager: str = MANAGER, as_json: bool = JSON) -> None:
    """What is stored of each chain, and which workers there are."""
    from leasehold.cli.remote import ask

    chains = ask(f"{manager}/index/status")[0]
    workers = ask(f"{manager}/get_workers")[0]
    if as_json:
        print(json.dumps({"chains": chains, "workers": workers}))
        return
    for chain in chains:
        print(
            f"{chain['network']}/{chain['chain_id']}: {chain['heights']} heights"
            f" ({_ranges(chain['covered']) or 'none'})"
        )
        if chain["missing"]:
            print(f"  missing {_ranges(chain['missing'])}")
    if not chains:
        print("nothing is stored yet")
    for network, group in workers.items():
        print(f"workers of {network}: {group['active']} of {group['all']} online")


@app.command()
def fetch(
    rpc: str = RPC,
    network: str = NETWORK,
    first: int = typer.Option(0, "--from", help="First height; default the newest."),
    last: int = typer.Option(0, "--to", help="Last height; default the newest."),
    as_json: bool = JSON,
    lines: bool = typer.Option(False, "--lines", help="Print one JSON object a height."),
) -> None:
    """Read heights from a node and print blocks and transactions; nothing is stored."""
    import msgspec

    from leasehold.app.local_index import fetched
    from leasehold.cli.progress import Far, showing
    from leasehold.core import logs
    from leasehold.index.settings import IndexSettings

    logs.configure("warning")
    settings = IndexSettings(network=network, rpc=rpc)

    heights, far = (last or first) - first + 1 if first else 1, Far(0, 0, "")

    async def run() -> dict[str, list[Any]]:
        nonlocal far
        got = 0
        out: dict[str, list[Any]] = {"blocks": [], "transactions": []}
        async for height in fetched(settings, first, last or first):
            got += 1
            far = Far(got, heights, f"{got} of {heights} heights")
            if lines:
                sys.stdout.write(msgspec.json.encode(height).decode() + "\n")
            elif as_json:
                block = msgspec.to_builtins(height.block)
                out["blocks"].append({**block, "events": msgspec.to_builtins(height.events)})
                out["transactions"] += [msgspec.to_builtins(tx) for tx in height.transactions]
            else:
                _print_height(height)
        return out

    # Lines that go to a terminal are their own progress; a bar between them would spoil them.
    with showing(lambda: far) if not sys.stdout.isatty() else contextlib.nullcontext():
        found = asyncio.run(run())
    if as_json and not lines:
        sys.stdout.write(msgspec.json.encode({"network": network, **found}).decode() + "\n")


@app.command()
def sync(
    rpc: str = RPC,
    network: str = NETWORK,
    chain_id: str = typer.Option("", help="Refuse a node of any other chain."),
    first: int = typer.Option(..., "--from", help="First height."),
    last: int = typer.Option(..., "--to", help="Last height."),
    store: str = typer.Option(
        None, help="Database URL; default a SQLite file of the state folder."
    ),
    overwrite: bool = typer.Option(False, help="Fetch again what is stored already."),
    as_json: bool = JSON,
) -> None:
    """Fetch a range into a store. Doing it again fetches only what is missing."""
    import msgspec

    from leasehold.app.local_index import local_index
    from leasehold.cli.progress import EVERY, Far, showing
    from leasehold.cli.state import state_folder
    from leasehold.core import logs
    from leasehold.core.errors import Kind, LeaseholdError
    from leasehold.index.settings import IndexSettings

    logs.configure("warning")
    folder: Path = state_folder()
    if store is None:
        folder.mkdir(parents=True, exist_ok=True)
    url = store or f"sqlite+aiosqlite:///{folder / 'index.sqlite3'}"
    settings = IndexSettings(network=network, chain_id=chain_id, rpc=rpc, store=url)

    far = Far(0, 0, "")

    async def look(operations: Any) -> None:
        nonlocal far
        while True:
            gaps = await operations.missing(network, operations.settings.chain_id, first, last)
            left = sum(end - start + 1 for start, end in gaps.missing_blocks)
            total = last - first + 1
            far = Far(total - left, total, f"{total - left} of {total} heights")
            await asyncio.sleep(EVERY)

    async def run() -> Any:
        async with local_index(settings) as operations:
            looking = asyncio.ensure_future(look(operations)) if sys.stderr.isatty() else None
            try:
                return await operations.range(
                    network, operations.settings.chain_id, first, last, overwrite=overwrite
                )
            finally:
                if looking is not None:
                    looking.cancel()

    with showing(lambda: far):
        result = asyncio.run(run())
    if as_json:
        print(msgspec.json.encode(result).decode())
    else:
        print(f"{result.stored} heights and {result.transactions} transactions stored")
    if result.missing:
        raise LeaseholdError(
            "range_incomplete",
            f"missing {_ranges(result.missing)}: {'; '.join(result.errors[:3])}",
            kind=Kind.UNAVAILABLE,
        )


@app.command()
def search(
    network: str = NETWORK,
    chain_id: list[str] = typer.Option(None, "--chain-id", help="Only these chains."),
    height: int = typer.Option(None, help="This height."),
    after_height: int = typer.Option(None, help="Later heights."),
    before_height: int = typer.Option(None, help="Earlier heights."),
    hash: str = typer.Option(None, help="This transaction."),
    type: list[str] = typer.Option(None, help="Of all these types."),
    account: list[str] = typer.Option(None, help="Involving all these accounts."),
    sender: list[str] = typer.Option(None, help="Sent by."),
    receiver: list[str] = typer.Option(None, help="Received by."),
    memo: str = typer.Option(None, help="Words of the memo."),
    after_time: str = typer.Option(None, help="RFC 3339."),
    before_time: str = typer.Option(None, help="RFC 3339."),
    limit: int = typer.Option(20, help="At most this many, newest first."),
    offset: int = typer.Option(0, help="Leave out this many."),
    raw: bool = typer.Option(False, help="With the transactions' bytes."),
    manager: str = MANAGER,
    as_json: bool = JSON,
) -> None:
    """Find transactions; all conditions must hold."""
    from leasehold.cli.remote import ask

    wanted = {
        "network": network, "chain_ids": chain_id, "height": height, "after_height": after_height,
        "before_height": before_height, "hash": hash, "type": type, "account": account,
        "sender": sender, "receiver": receiver, "memo": memo, "after_time": after_time,
        "before_time": before_time, "limit": limit, "offset": offset, "with_raw": raw,
    }  # fmt: skip
    body = {key: value for key, value in wanted.items() if value not in (None, [], ())}
    found, headers = ask(f"{manager}/transactions_search", method="POST", body=body)
    covered = headers.get("leasehold-covered", "")
    if as_json:
        print(json.dumps({"transactions": found, "covered": covered}))
        return
    for transaction in found:
        _print_transaction(transaction)
    print(f"{len(found)} found; looked at {covered or 'nothing: no such chain is stored'}")


@app.command()
def missing(
    chain_id: str = typer.Option(..., help="Chain id."),
    first: int = typer.Option(..., "--from", help="First height."),
    last: int = typer.Option(..., "--to", help="Last height."),
    network: str = NETWORK,
    fill: bool = typer.Option(False, help="Fetch what is missing."),
    manager: str = MANAGER,
    as_json: bool = JSON,
) -> None:
    """Which heights of a range are not stored."""
    from leasehold.cli.remote import ask

    where = {
        "network": network, "chain_id": chain_id, "start_height": first, "end_height": last,
    }  # fmt: skip
    if fill:
        ask(f"{manager}/get_missing", params=where)
    found = ask(f"{manager}/check_missing", params=where)[0]
    if as_json:
        print(json.dumps(found))
    else:
        print(_ranges(found["missing_blocks"]) or "nothing is missing")


def _ranges(ranges: list[Any]) -> str:
    return ", ".join(f"{a}-{b}" if a != b else f"{a}" for a, b in ranges)


def _print_height(height: Any) -> None:
    block = height.block
    print(f"{block.height}  {block.time}  {block.hash}  {block.num_txs} transactions")
    for event in height.events:
        print(f"    event {event.type}")
    for tx in height.transactions:
        kinds = ", ".join(event.kind for event in tx.events)
        print(f"    {tx.hash}  {'failed' if tx.has_errors else 'ok'}  {kinds}")


def _print_transaction(tx: dict[str, Any]) -> None:
    kinds = ", ".join(event.get("kind", "") for event in tx.get("events", []))
    print(f"{tx['height']}  {tx['hash']}  {'failed' if tx.get('has_errors') else 'ok'}  {kinds}")
