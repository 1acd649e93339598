"""``leasehold worker``: an index worker in a process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

app = typer.Typer(add_completion=False)


@app.command()
def worker(
    managers: list[str] = typer.Option(None, "--manager", help="Manager, host:port; repeatable."),
    network: str = typer.Option(None, help="Network: cosmos or ledger."),
    chain_id: str = typer.Option(None, help="Chain id, as the chain itself says."),
    rpc: str = typer.Option(None, help="URL of the chain's CometBFT RPC."),
    host: str = typer.Option(None, help="Address to listen on."),
    port: int = typer.Option(None, help="gRPC port; 0 picks one."),
    address: str = typer.Option(None, help="host:port told to managers."),
    attach: bool = typer.Option(
        None, "--attach", help="Dial the managers (their attach port) instead of being dialled."
    ),
    state: Path = typer.Option(
        None, help="Folder with the settings file and, if there is one, worker.key."
    ),
    settings: Path = typer.Option(None, "--settings", help="Settings file (TOML)."),
) -> None:
    """Run until Ctrl-C, then finish what was begun."""
    from leasehold.app.roles import WorkerRole, serve
    from leasehold.app.settings import read
    from leasehold.cli.state import state_folder
    from leasehold.dispatch.originals import WORKER, translate

    found, hints = translate(WORKER, os.environ)
    for hint in hints:
        print(f"hint: {hint}", file=sys.stderr)
    flags = {f"{section}.{key}": v for section, keys in found.items() for key, v in keys.items()}
    given = {
        "dispatch.managers": managers or None,
        "dispatch.network": network,
        "index.network": network,
        "dispatch.chain_id": chain_id,
        "index.chain_id": chain_id,
        "index.rpc": rpc,
        "dispatch.worker_host": host,
        "dispatch.worker_port": port,
        "dispatch.worker_address": address,
        "dispatch.attach": attach,
    }
    flags.update({key: value for key, value in given.items() if value is not None})
    folder = state_folder(state)
    values = read(folder, file=settings, flags=flags).values
    serve(WorkerRole(values, key=folder / "worker.key"), values)
