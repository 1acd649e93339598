"""``leasehold manager``: a manager of index workers in a process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

app = typer.Typer(add_completion=False)


@app.command()
def manager(
    state: Path = typer.Option(None, help="Folder of the index; default the state folder."),
    settings: Path = typer.Option(None, "--settings", help="Settings file (TOML)."),
    config: Path = typer.Option(None, "--config", help="An original manager's JSON config."),
    host: str = typer.Option(None, help="Address to listen on."),
    port: int = typer.Option(None, help="HTTP port workers and clients use."),
) -> None:
    """Run until Ctrl-C. Also takes ADDRESS and DATABASE_URL of the original manager."""
    from leasehold.app.manager import ManagerRole, original_flags
    from leasehold.app.roles import serve
    from leasehold.app.settings import read
    from leasehold.cli.state import state_folder

    flags, hints = original_flags(os.environ, config)
    for hint in hints:
        print(f"hint: {hint}", file=sys.stderr)
    flags.update({"dispatch.manager_host": host or flags.get("dispatch.manager_host")})
    flags.update({"dispatch.manager_port": port or flags.get("dispatch.manager_port")})
    folder = state_folder(state)
    folder.mkdir(parents=True, exist_ok=True)
    values = read(folder, file=settings, flags=flags).values
    serve(ManagerRole(folder, values), values)
