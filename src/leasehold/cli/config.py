"""``leasehold config``: the settings in force and where each came from."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(help="Show settings and where they come from.", no_args_is_help=True)


@app.callback()
def _group() -> None: ...


@app.command()
def show(
    file: Path = typer.Option(None, "--config", help="Settings file (TOML)."),
    state: Path = typer.Option(None, help="State folder of the provider."),
    changed: bool = typer.Option(False, "--changed", help="Only what is not a default."),
    as_json: bool = typer.Option(False, "--json", help="As JSON."),
) -> None:
    """Print every setting, its value and its source; secrets are masked."""
    from leasehold.app.settings import read
    from leasehold.cli.state import print_json, state_folder

    rows = [
        {"setting": path, "value": value, "source": source}
        for path, value, source in read(state_folder(state), file=file).rows()
        if not changed or source != "default"
    ]
    if as_json:
        print_json(rows)
        return
    width = max((len(row["setting"]) for row in rows), default=0)
    for row in rows:
        source = "" if row["source"] == "default" else f"   # {row['source']}"
        print(f"{row['setting']:{width}}  {row['value']}{source}")
