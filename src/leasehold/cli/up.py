"""``leasehold up``: every role on this machine, in one process."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(add_completion=False)


@app.command()
def up(
    state: Path = typer.Option(None, help="Folder everything is kept in."),
    config: Path = typer.Option(None, help="Settings file; default leasehold.toml in the folder."),
    level: str = typer.Option(None, "--log-level", help="debug, info, warning or error."),
) -> None:
    """Run until Ctrl-C. Workloads go on running; the next start takes them over again."""
    from leasehold.app.process import run_provider
    from leasehold.cli.state import state_folder

    run_provider(state_folder(state), config=config, flags={"log.level": level})
