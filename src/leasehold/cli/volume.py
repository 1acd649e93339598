"""``leasehold volume``: the volumes of a running provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from leasehold.cli.tables import show

app = typer.Typer(help="Volumes: history, snapshots, freeze, move, archive.", no_args_is_help=True)
State = typer.Option(None, "--state", help="State folder of the provider.")
Json = typer.Option(False, "--json", help="As JSON.")
Which = typer.Argument(help="A volume by id or path, as volume ls shows them.")
Author = typer.Option("operator", help="Who does it; kept in the history.")
Reason = typer.Option("", help="Why; kept in the history.")


Wait = typer.Option(
    None, "--wait/--no-wait", help="Wait for the end; default on a terminal.", show_default=False
)


def _changed(what: str, state: Path | None, wait: bool | None, as_json: bool, **body: Any) -> None:
    """Begin a change and, if wanted, wait for its end with a progress bar."""
    from leasehold.cli import following
    from leasehold.cli.client import operator

    with operator(state) as api:
        since = api.get("/v1/events/last")["seq"]
        done = api.post(f"/v1/volumes/{what}", body)
        if following.wanted(wait):
            done = following.follow(api, state, done, since)
    show(done, as_json)


def _post(what: str, state: Path | None, **body: Any) -> Any:
    from leasehold.cli.client import operator

    with operator(state) as api:
        return api.post(f"/v1/volumes/{what}", body)


@app.command()
def ls(
    prefix: str = typer.Argument("", help="Only at or below this path."),
    state: Path = State,
    as_json: bool = Json,
) -> None:
    """All volumes, frozen ones too."""
    from leasehold.cli.client import operator

    with operator(state) as api:
        rows = api.get("/v1/volumes", prefix=prefix)
    show(rows, as_json, "path", "tier", "used_bytes", "files", "busy", "error", "id")


@app.command()
def history(volume: str = Which, state: Path = State, as_json: bool = Json) -> None:
    """Snapshots, newest first."""
    from leasehold.cli.client import operator

    with operator(state) as api:
        rows = api.get("/v1/volumes/history", volume=volume)
    show(rows, as_json, "commit", "at", "author", "files", "bytes", "stored", "message")


@app.command()
def diff(
    volume: str = Which,
    old: str = typer.Argument(help="A snapshot."),
    new: str = typer.Argument(None, help="Another one; default the newest."),
    state: Path = State,
    as_json: bool = Json,
) -> None:
    """What changed between two snapshots."""
    from leasehold.cli.client import operator

    with operator(state) as api:
        rows = api.get("/v1/volumes/diff", volume=volume, old=old, new=new)
    show(rows, as_json, "how", "path")


@app.command()
def snapshot(
    volume: str = Which,
    author: str = Author,
    reason: str = Reason,
    state: Path = State,
    as_json: bool = Json,
) -> None:
    """Record a volume as it is now."""
    show(_post("snapshot", state, volume=volume, author=author, reason=reason), as_json)


@app.command()
def restore(
    volume: str = Which,
    at: str = typer.Option(..., "--at", help="A snapshot's id, or seconds UTC."),
    author: str = Author,
    state: Path = State,
    as_json: bool = Json,
) -> None:
    """Bring a volume back to a snapshot; what is there now is recorded first."""
    from leasehold.cli import following
    from leasehold.cli.progress import showing

    when: str | float = float(at) if at.isdecimal() and len(at) == 10 else at
    with showing(lambda: following.bytes_done(state, volume)):
        done = _post("restore", state, volume=volume, at=when, author=author)
    show(done, as_json)


def _change(action: str, text: str) -> None:
    def command(
        volume: str = Which,
        author: str = Author,
        reason: str = Reason,
        wait: bool = Wait,
        state: Path = State,
        as_json: bool = Json,
    ) -> None:
        body = {"volume": volume, "author": author, "reason": reason}
        _changed(f"change/{action}", state, wait, as_json, **body)

    app.command(action, help=text)(command)


_change("freeze", "Take a last snapshot and make the volume read-only.")
_change("unfreeze", "Make a frozen volume usable again.")
_change("archive", "Pack a frozen volume into a compressed archive.")
_change("unarchive", "Bring an archived volume back; it is frozen then.")


@app.command()
def move(
    volume: str = Which,
    path: str = typer.Argument(help="The new global path."),
    host: str = typer.Option("", help="The new host; default the same."),
    wait: bool = Wait,
    state: Path = State,
    as_json: bool = Json,
) -> None:
    """Move a volume to another path or host."""
    _changed("move", state, wait, as_json, volume=volume, path=path, host=host)


@app.command()
def clear(volume: str = Which, state: Path = State, as_json: bool = Json) -> None:
    """Forget a volume's stored error and try again."""
    show(_post("clear", state, volume=volume), as_json)
