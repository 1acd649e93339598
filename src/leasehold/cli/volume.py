"""``leasehold volume``: the volumes of a running provider.

Looking (``ls``, ``history``, ``diff``) works as a tenant, too; everything else is the operator's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leasehold.cli.tables import show
from leasehold.core.errors import not_found

if TYPE_CHECKING:
    from leasehold.cli.client import Api

app = typer.Typer(help="Volumes: history, snapshots, freeze, move, archive.", no_args_is_help=True)
State = typer.Option(None, "--state", help="State folder of the provider.")
Json = typer.Option(False, "--json", help="As JSON.")
As = typer.Option(None, "--as", help="As the tenant of this account; default: whoever may.")
At = typer.Option(
    None, "--provider", help="As a tenant at this provider; default: the one of this machine."
)
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


class _View:
    """Volumes as the operator of the provider of this machine sees them, or as a tenant."""

    def __init__(self, api: Api, *, operator: bool) -> None:
        self.api = api
        self.operator = operator

    def rows(self, prefix: str = "") -> list[dict[str, Any]]:
        if self.operator:
            return list(self.api.get("/v1/volumes", prefix=prefix))
        return [row for row in self.api.get("/volumes") if _below(row["path"], prefix)]

    def of(self, volume: str, what: str, **query: Any) -> list[dict[str, Any]]:
        """``history`` or ``diff`` of a volume."""
        if self.operator:
            return list(self.api.get(f"/v1/volumes/{what}", volume=volume, **query))
        for row in self.rows():
            if volume in (row["id"], row["path"], row["path"].split("/", 2)[-1]):
                return list(self.api.get(f"/volumes/{row['id']}/{what}", **query))
        raise not_found("volume", volume, hint="`leasehold volume ls --as ACCOUNT` lists them.")


@contextlib.contextmanager
def _view(state: Path | None, account: str | None, provider: str | None) -> Iterator[_View]:
    """As the operator where nothing else is said and that is possible, else as a tenant."""
    from leasehold.cli.client import operator
    from leasehold.cli.reach import Reach

    with Reach(state=state, ledger=None, account=account) as reach:
        if provider is None and reach.as_operator:
            with operator(state) as api:
                yield _View(api, operator=True)
        else:
            yield _View(reach.tenant_at(provider), operator=False)


def _below(path: str, prefix: str) -> bool:
    prefix = prefix.rstrip("/")
    return not prefix or path == prefix or path.startswith(f"{prefix}/")


@app.command()
def ls(
    prefix: str = typer.Argument("", help="Only at or below this path."),
    account: str = As,
    provider: str = At,
    state: Path = State,
    as_json: bool = Json,
) -> None:
    """All volumes, frozen ones too; as a tenant your own."""
    with _view(state, account, provider) as view:
        rows = view.rows(prefix)
    show(rows, as_json, "path", "tier", "used_bytes", "files", "busy", "error", "id")


@app.command()
def history(
    volume: str = Which,
    account: str = As,
    provider: str = At,
    state: Path = State,
    as_json: bool = Json,
) -> None:
    """Snapshots, newest first; as a tenant of your own volumes."""
    with _view(state, account, provider) as view:
        rows = view.of(volume, "history")
    show(rows, as_json, "commit", "at", "author", "files", "bytes", "stored", "message")


@app.command()
def diff(
    volume: str = Which,
    old: str = typer.Argument(help="A snapshot."),
    new: str = typer.Argument(None, help="Another one; default the newest."),
    account: str = As,
    provider: str = At,
    state: Path = State,
    as_json: bool = Json,
) -> None:
    """What changed between two snapshots; as a tenant of your own volumes."""
    with _view(state, account, provider) as view:
        rows = view.of(volume, "diff", old=old, new=new)
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
