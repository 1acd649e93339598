"""``leasehold schedule``: periodic tasks of a running scheduler."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import Any

import typer

app = typer.Typer(help="Periodic tasks: list, add, enable, disable, results.", no_args_is_help=True)

URL = typer.Option(
    "http://127.0.0.1:8075", "--url", envvar="LEASEHOLD_SCHEDULER", help="The scheduler's URL."
)
JSON = typer.Option(False, "--json", help="Print JSON.")


@app.command()
def ls(url: str = URL, as_json: bool = JSON) -> None:
    """All tasks, how far they are, and where they could go."""
    tasks = _ask(url, "GET", "/scheduler/core/list")
    if as_json:
        print(json.dumps(tasks))
        return
    for task in tasks:
        _line(task)
    if not tasks:
        print("no tasks; add one with: leasehold schedule add NETWORK CHAIN --every 10s")


@app.command()
def add(
    network: str = typer.Argument(..., help="Network of the workers."),
    chain_id: str = typer.Argument(..., help="Chain id of the workers."),
    every: str = typer.Option("10s", help="Interval: 30s, 1m30s, 500ms."),
    kind: str = typer.Option("lastdata", help="lastdata or syncrange."),
    task_id: str = typer.Option("default", "--task", help="A name of your own."),
    height_from: int = typer.Option(None, "--from", help="First height (syncrange)."),
    height_to: int = typer.Option(None, "--to", help="Last height (syncrange)."),
    enabled: bool = typer.Option(False, "--enable", help="Let it run at once."),
    url: str = URL,
    as_json: bool = JSON,
) -> None:
    """Add a task."""
    config = {"height_from": height_from, "height_to": height_to}
    body: dict[str, Any] = {
        "network": network,
        "chain_id": chain_id,
        "interval": every,
        "kind": kind,
        "task_id": task_id,
        "config": {key: value for key, value in config.items() if value is not None},
    }
    query = "?enabled=true" if enabled else ""
    _show(_ask(url, "POST", f"/scheduler/core/addTask{query}", body), as_json)


@app.command()
def enable(
    task: str = typer.Argument(..., help="Id, or name when it is unique."),
    url: str = URL,
    as_json: bool = JSON,
) -> None:
    """Let a task run."""
    _show(_ask(url, "POST", f"/scheduler/core/enable/{task}"), as_json)


@app.command()
def disable(
    task: str = typer.Argument(..., help="Id, or name when it is unique."),
    url: str = URL,
    as_json: bool = JSON,
) -> None:
    """Stop a task; a call under way is cancelled."""
    _show(_ask(url, "POST", f"/scheduler/core/disable/{task}"), as_json)


@app.command()
def runs(
    task: str = typer.Argument(..., help="Id, or name when it is unique."),
    limit: int = typer.Option(20, help="How many, newest first."),
    offset: int = typer.Option(0, help="How many to leave out."),
    url: str = URL,
    as_json: bool = JSON,
) -> None:
    """Results of a task, newest first."""
    found = _ask(url, "GET", f"/scheduler/core/runs/{task}?limit={limit}&offset={offset}")
    if as_json:
        print(json.dumps(found))
        return
    for run in found:
        at = datetime.fromtimestamp(run["at"], UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        print(f"{at}  {run['seconds']:8.3f} s  height {run['height']}  {run['error']}".rstrip())


def _show(task: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(task))
    else:
        _line(task)


def _line(task: dict[str, Any]) -> None:
    state = task["status"] if task["enabled"] or task["status"] == "finished" else "disabled"
    where = f"{task['network']}/{task['chain_id']}"
    height = task["state"].get("last_height", 0)
    print(
        f"{task['id']}  {task['task_id']:<16} {task['kind']:<9} {where}"
        f"  every {task['interval']:g} s  {state}  height {height}"
    )


def _ask(url: str, method: str, path: str, body: Any = None) -> Any:
    import httpx

    from leasehold.cli.remote import ask

    user, password = os.environ.get("AUTH_USER", ""), os.environ.get("AUTH_PASSWORD", "")
    auth = httpx.BasicAuth(user, password) if user else None
    return ask(f"{url.rstrip('/')}{path}", method=method, body=body, auth=auth)[0]
