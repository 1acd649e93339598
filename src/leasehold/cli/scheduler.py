"""``leasehold scheduler``: a scheduler in a process of its own."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(add_completion=False)


@app.command()
def scheduler(
    state: Path = typer.Option(None, help="Folder of its rows; default the state folder."),
    settings: Path = typer.Option(None, "--settings", help="Settings file (TOML)."),
    managers: list[str] = typer.Option(None, "--manager", help="Manager, host:port; repeatable."),
    host: str = typer.Option(None, help="Address to listen on."),
    port: int = typer.Option(None, help="HTTP port."),
) -> None:
    """Run until Ctrl-C. Several instances may share one database."""
    from leasehold.app.roles import SchedulerRole, serve
    from leasehold.app.settings import read
    from leasehold.cli.state import state_folder

    folder = state_folder(state)
    folder.mkdir(parents=True, exist_ok=True)
    flags = {
        "schedule.managers": managers or None,
        "schedule.host": host,
        "schedule.port": port,
    }
    values = read(folder, file=settings, flags=flags).values
    serve(SchedulerRole(folder, values), values)
