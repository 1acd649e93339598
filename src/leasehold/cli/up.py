"""``leasehold up``: every role on this machine, in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

app = typer.Typer(add_completion=False)


@app.command()
def up(
    state: Path = typer.Option(None, help="Folder everything is kept in."),
    config: Path = typer.Option(None, help="Settings file; default leasehold.toml in the folder."),
    level: str = typer.Option(None, "--log-level", help="debug, info, warning or error."),
    system_services: str = typer.Option(
        None, "--enable-system-services", help="Packages of the node: all, none or a,b."
    ),
) -> None:
    """Run until Ctrl-C. Workloads go on running; the next start takes them over again."""
    from leasehold.app.process import run_provider
    from leasehold.cli.state import state_folder

    flags: dict[str, Any] = {"log.level": level}
    if system_services is not None:
        from leasehold.node.settings import parse_enable

        flags["system_services.enable"] = parse_enable(system_services)
    run_provider(state_folder(state), config=config, flags=flags)
