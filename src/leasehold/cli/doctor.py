"""``leasehold doctor``: everything this machine lacks, each with what to do."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(add_completion=False)

MARKS = {"ok": "✓", "warning": "!", "error": "✗"}


@app.command()
def doctor(
    state: Path = typer.Option(None, help="State folder of the provider."),
    config: Path = typer.Option(None, "--config", help="Settings file (TOML)."),
    as_json: bool = typer.Option(False, "--json", help="As JSON."),
) -> None:
    """Check this machine; changes nothing. Exit code 1 when workloads could not run."""
    from leasehold.app.settings import read
    from leasehold.cli import screen
    from leasehold.cli.state import print_json, state_folder
    from leasehold.deploy.doctor import doctor as examine

    folder = state_folder(state)
    checks = examine(read(folder, file=config).values.deploy, folder)
    bad = [check for check in checks if check.level == "error"]
    if as_json:
        print_json({"ok": not bad, "checks": checks})
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            style = {"ok": "green", "warning": "yellow"}.get(check.level, "red")
            mark = screen.paint(MARKS[check.level], style)
            print(f"{mark} {check.name:{width}}  {check.detail}")
            if check.fix:
                print(f"  {'':{width}}  {screen.paint('do', 'bold')}: {check.fix}")
        if bad:
            print(f"\nworkloads cannot run here yet: {', '.join(check.name for check in bad)}")
    if bad:
        raise typer.Exit(1)
