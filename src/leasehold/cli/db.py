"""``leasehold db``: the schema of the event log. For a log no provider has open."""

from __future__ import annotations

from pathlib import Path

import typer

from leasehold.cli.tables import show

app = typer.Typer(help="The schema of the event log.", no_args_is_help=True)
Where = typer.Option(
    None,
    "--url",
    help="A PostgreSQL URL; default: events.url, or the folder's file.",
)
State = typer.Option(None, "--state", help="State folder of the provider.")
Json = typer.Option(False, "--json", help="As JSON.")


@app.command()
def status(url: str = Where, state: Path = State, as_json: bool = Json) -> None:
    """Which revision the log is at, and which this release needs."""
    from leasehold.events import migrate

    show(migrate.status(_place(url, state)), as_json)


@app.command(name="migrate")
def upgrade(url: str = Where, state: Path = State, as_json: bool = Json) -> None:
    """Bring the log to this release's schema; at it already, nothing happens."""
    from leasehold.events import migrate

    show(migrate.upgrade(_place(url, state)), as_json)


def _place(url: str | None, state: Path | None) -> str:
    from leasehold.app.settings import read
    from leasehold.cli.state import state_folder

    folder = state_folder(state)
    return url or read(folder).values.events.url or str(folder / "events.sqlite3")
