"""``leasehold events``: read the log of a running provider."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from leasehold.cli.tables import show as table

app = typer.Typer(help="Read the event log.", no_args_is_help=True)
State = typer.Option(None, "--state", help="State folder of the provider.")
Json = typer.Option(False, "--json", help="As JSON lines.")


def _line(event: dict[str, object], as_json: bool) -> None:
    if as_json:
        print(json.dumps(event), flush=True)
    else:
        data = json.dumps(event["data"])
        print(f"{event['seq']:>8}  {event['type']:28}  {event['entity']}  {data}", flush=True)


@app.command()
def tail(
    after: int = typer.Option(None, help="Start after this sequence number; default: now."),
    kind: str = typer.Option("", help="Only entities of this kind."),
    state: Path = State,
    as_json: bool = Json,
) -> None:
    """Print events as they are committed, until interrupted."""
    from leasehold.cli.client import operator

    with operator(state) as api, api.stream("/v1/events/tail", after=after, kind=kind) as lines:
        for line in lines:
            if line:
                _line(json.loads(line), as_json)


@app.command()
def show(
    entity: str = typer.Argument(help="kind:id, such as lease:OWNER/7/1/1/PROVIDER"),
    state: Path = State,
    as_json: bool = Json,
) -> None:
    """The history of one entity."""
    from leasehold.cli.client import operator

    with operator(state) as api:
        after = None
        while page := api.get("/v1/events/entity", entity=entity, after=after):
            for event in page:
                _line(event, as_json)
            after = page[-1]["id"]


@app.command()
def replay(
    after: int = typer.Option(0, help="Start after this sequence number."),
    kind: str = typer.Option("", help="Only entities of this kind."),
    state: Path = State,
    as_json: bool = Json,
) -> None:
    """Every event from the beginning, in commit order, up to now."""
    from leasehold.cli.client import operator

    with operator(state) as api:
        newest = api.get("/v1/events/last")["seq"]
        while after < newest:
            page = api.get("/v1/events", after=after, kind=kind, limit=1000)
            for event in page:
                _line(event, as_json)
            if len(page) < 1000:
                return
            after = page[-1]["seq"]


@app.command()
def catalogue(as_json: bool = typer.Option(False, "--json", help="As JSON.")) -> None:
    """Every type of event this release knows."""
    from leasehold.model.events import catalogue as known

    rows = [
        {"type": name, "fields": ", ".join(cls.__struct_fields__)} for name, cls in known().items()
    ]
    table(rows, as_json, "type", "fields")
