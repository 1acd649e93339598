"""``leasehold observe``: look into the activities of a running provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from leasehold.cli.tables import show

app = typer.Typer(help="Activities: list, inspect, kick, pause, clear.", no_args_is_help=True)
State = typer.Option(None, "--state", help="State folder of the provider.")
Json = typer.Option(False, "--json", help="As JSON.")
Activity = typer.Argument(help="Name of the activity, as observe ls shows it.")
Of = typer.Argument(help="Its entity, kind:id.")
Key = typer.Option("", help="Its key, where an entity has several.")


def _post(what: str, activity: str, entity: str, key: str, state: Path | None) -> Any:
    from leasehold.cli.client import operator

    with operator(state) as api:
        return api.post(f"/v1/observe/{what}", {"activity": activity, "entity": entity, "key": key})


@app.command()
def ls(
    activity: str = typer.Argument("", help="Only this activity, one line each."),
    status: str = typer.Option("", help="Only in this state: retrying, parked, paused, …"),
    state: Path = State,
    as_json: bool = Json,
) -> None:
    """Numbers by kind of activity; with a name or a state, each one that is not asleep."""
    from leasehold.cli.client import operator

    with operator(state) as api:
        if not activity and not status:
            columns = ("activity", "kind", "limit", "sleeping", "running", "retrying", "parked")
            show(api.get("/v1/observe"), as_json, *columns)
            return
        rows = api.get("/v1/observe/tasks", activity=activity, status=status)
        for row in rows:
            row["message"] = (row.get("error") or {}).get("message")
        show(rows, as_json, "activity", "entity", "key", "state", "failures", "message")


@app.command()
def inspect(
    activity: str = Activity,
    entity: str = Of,
    key: str = Key,
    state: Path = State,
    as_json: bool = Json,
) -> None:
    """Everything about one activity."""
    from leasehold.cli.client import operator

    with operator(state) as api:
        found = api.get("/v1/observe/task", activity=activity, entity=entity, key=key)
        show(found, as_json)


@app.command()
def kick(
    activity: str = Activity,
    entity: str = Of,
    key: str = Key,
    state: Path = State,
    as_json: bool = Json,
) -> None:
    """Run it now, whatever it waits for."""
    show(_post("kick", activity, entity, key, state), as_json)


@app.command()
def pause(
    activity: str = Activity,
    entity: str = Of,
    key: str = Key,
    state: Path = State,
    as_json: bool = Json,
) -> None:
    """Start nothing more until it is resumed, also after a restart."""
    show(_post("pause", activity, entity, key, state), as_json)


@app.command()
def resume(
    activity: str = Activity,
    entity: str = Of,
    key: str = Key,
    state: Path = State,
    as_json: bool = Json,
) -> None:
    """Let it run again."""
    show(_post("resume", activity, entity, key, state), as_json)


@app.command()
def clear(
    activity: str = Activity,
    entity: str = Of,
    key: str = Key,
    state: Path = State,
    as_json: bool = Json,
) -> None:
    """Forget its stored error and try again."""
    show(_post("clear", activity, entity, key, state), as_json)
