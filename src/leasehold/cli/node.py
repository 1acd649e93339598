"""``leasehold node``: packages, services and spells of this machine's node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from leasehold.cli import node_images

app = typer.Typer(help="Packages, services and spells of this node.", no_args_is_help=True)
services = typer.Typer(help="Long-lived services one can call.", no_args_is_help=True)
spells = typer.Typer(help="Scripts fired by triggers.", no_args_is_help=True)
trust = typer.Typer(help="Certificates for trust-graph.", no_args_is_help=True)
app.add_typer(services, name="services")
app.add_typer(spells, name="spells")
app.add_typer(trust, name="trust")
app.add_typer(node_images.setup, name="setup")

State = typer.Option(None, "--state", help="State folder of the provider.")
Json = typer.Option(False, "--json", help="As JSON.")


@app.callback(invoke_without_command=True)
def node(
    context: typer.Context,
    only: str = typer.Option(None, "--only", help="Run one system of the node alone: images."),
    state: Path = State,
    config: Path = typer.Option(None, help="Settings file; default leasehold.toml in the folder."),
) -> None:
    """Packages, services and spells of this node; or the image system alone."""
    if only and context.invoked_subcommand is None:
        node_images.run_only(only, state, config)


def _get(path: str, state: Path | None, **params: Any) -> Any:
    from leasehold.cli.client import operator

    with operator(state) as api:
        return api.get(path, **params)


def _send(method: str, path: str, state: Path | None, body: Any = None) -> Any:
    from leasehold.cli.client import operator

    with operator(state) as api:
        return api.request(method, path, json=body)


def _show(value: Any, as_json: bool, columns: tuple[str, ...] = ()) -> None:
    """JSON, a table of ``columns``, or ``key  value`` lines."""
    if as_json:
        print(json.dumps(value, indent=2))
    elif isinstance(value, list) and columns:
        rows = [[_cell(row.get(column)) for column in columns] for row in value]
        widths = [
            max([len(column), *(len(row[i]) for row in rows)]) for i, column in enumerate(columns)
        ]
        for row in [[column.upper() for column in columns], *rows]:
            print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
    elif isinstance(value, dict):
        width = max((len(key) for key in value), default=0)
        for key, each in value.items():
            print(f"{key:{width}}  {_cell(each)}")
    else:
        print(_cell(value))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(_cell, value)) or "-"
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _args(words: list[str]) -> list[Any]:
    """Arguments of a call: JSON where it is JSON, else text."""
    out: list[Any] = []
    for word in words:
        try:
            out.append(json.loads(word))
        except ValueError:
            out.append(word)
    return out


@app.command()
def status(state: Path = State, as_json: bool = Json) -> None:
    """Whether the packages are in place, and their versions."""
    found = _get("/v1/node/status", state)
    if as_json:
        _show(found, True)
        return
    ready = "ready" if found["ready"] else "deploying packages"
    took = f" ({found['boot_ms']:.0f} ms)" if found["boot_ms"] is not None else ""
    print(f"node {found['peer_id']}: {ready}{took}")
    packages(state, False)


@app.command()
def packages(state: Path = State, as_json: bool = Json) -> None:
    """Installed and shipped version of each package, and how its last deploy ended."""
    found = _get("/v1/node/packages", state)
    _show(found, as_json, ("name", "installed", "bundled", "status", "message"))
    if not as_json:
        for package in found:
            for warning in package["warnings"]:
                print(f"  {package['name']}: {warning}")


@app.command()
def plan(state: Path = State, as_json: bool = Json) -> None:
    """What a reload would change, without changing it."""
    found = _get("/v1/node/plan", state)
    if found or as_json:
        _show(found, as_json, ("package", "what", "name"))
    else:
        print("nothing to do")


@app.command()
def reload(state: Path = State, as_json: bool = Json) -> None:
    """Look at the packages again and deploy what changed."""
    found = _send("POST", "/v1/node/reload", state)
    _show(found, as_json, ("package", "status", "changes", "message"))


@services.command("ls")
def services_ls(state: Path = State, as_json: bool = Json) -> None:
    """List services."""
    columns = ("name", "state", "kind", "pid", "restarts", "package", "version", "id")
    _show(_get("/v1/node/services", state), as_json, columns)


@services.command("show")
def services_show(name: str, state: Path = State, as_json: bool = Json) -> None:
    """One service and the functions it offers."""
    _show(_get(f"/v1/node/services/{name}", state), as_json)


@services.command("call")
def services_call(
    name: str,
    function: str,
    args: list[str] = typer.Argument(None, help="Arguments; JSON where they are JSON."),
    timeout: float = typer.Option(None, help="Seconds the call may take."),
    state: Path = State,
    as_json: bool = Json,
) -> None:
    """Call a function of a service."""
    body = {"function": function, "args": _args(args or []), "timeout": timeout}
    reply = _send("POST", f"/v1/node/services/{name}/call", state, body)
    _show(reply, as_json)
    if isinstance(reply, dict) and reply.get("success") is False:
        raise typer.Exit(1)


@services.command("restart")
def services_restart(name: str, state: Path = State, as_json: bool = Json) -> None:
    """End a service and start it again."""
    _show(_send("POST", f"/v1/node/services/{name}/restart", state), as_json)


@services.command("logs")
def services_logs(
    name: str,
    lines: int = typer.Option(100, "--lines", "-n", min=1, help="How many of the newest lines."),
    state: Path = State,
    as_json: bool = Json,
) -> None:
    """Output of a service."""
    found = _get(f"/v1/node/services/{name}/logs", state, lines=lines)
    _show(found, True) if as_json else print("\n".join(found["lines"]))


@spells.command("ls")
def spells_ls(state: Path = State, as_json: bool = Json) -> None:
    """List spells of all scopes."""
    columns = ("name", "state", "scope", "package", "version", "id")
    _show(_get("/v1/node/spells", state), as_json, columns)


@spells.command("show")
def spells_show(name: str, state: Path = State, as_json: bool = Json) -> None:
    """One spell: trigger, script, newest runs."""
    found = _get(f"/v1/node/spells/{name}", state)
    if as_json:
        _show(found, True)
        return
    script, runs = found.pop("script", ""), found.pop("runs", [])
    _show(found, False)
    print("\nscript:\n" + script)
    _show(runs, False, ("id", "trigger", "outcome", "seconds"))


@spells.command("run")
def spells_run(name: str, state: Path = State, as_json: bool = Json) -> None:
    """Run a spell once, now."""
    found = _send("POST", f"/v1/node/spells/{name}/run", state)
    if as_json:
        _show(found, True)
    else:
        print("\n".join(found["logs"]))
        for code, message in found["errors"]:
            print(f"{code}: {message}")
        print(f"outcome: {found['outcome']}")
    if found["outcome"] != "ok":
        raise typer.Exit(1)


@spells.command("logs")
def spells_logs(name: str, state: Path = State, as_json: bool = Json) -> None:
    """Lines printed by the runs of a spell."""
    _show(_get(f"/v1/node/spells/{name}/logs", state), as_json, ("run", "text"))


@spells.command("errors")
def spells_errors(name: str, state: Path = State, as_json: bool = Json) -> None:
    """Errors of the newest runs."""
    _show(_get(f"/v1/node/spells/{name}/errors", state), as_json, ("run", "code", "message"))


@spells.command("kv")
def spells_kv(
    name: str,
    key: str = typer.Argument(None, help="A key to set; list all without one."),
    value: str = typer.Argument(None, help="Its value; a number is stored as one."),
    state: Path = State,
    as_json: bool = Json,
) -> None:
    """Keys of a spell; with KEY and VALUE, set one as the host."""
    if key is not None and value is not None:
        body = {"value": int(value) if value.isdigit() else value}
        _show(_send("PUT", f"/v1/node/spells/{name}/kv/{key}", state, body), as_json)
        return
    found = _get(f"/v1/node/spells/{name}/kv", state)
    if key is not None:
        found = {k: v for k, v in found.items() if k == key}
    rows = [{"key": k, **v} for k, v in found.items()]
    _show(found if as_json else rows, as_json, ("key", "kind", "config", "value"))


@spells.command("trigger")
def spells_trigger(
    name: str,
    config: str = typer.Argument(None, help="New trigger as JSON; show it without one."),
    state: Path = State,
    as_json: bool = Json,
) -> None:
    """Show or replace the trigger of a spell."""
    if config is None:
        _show(_get(f"/v1/node/spells/{name}", state).get("trigger"), as_json)
        return
    try:
        body = json.loads(config)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}") from None
    _show(_send("PUT", f"/v1/node/spells/{name}/trigger", state, body), as_json)


@trust.command("root")
def trust_root(
    key: Path = typer.Argument(help="File for the private key; made when it is not there."),
    as_json: bool = Json,
) -> None:
    """Make a root of trust, or show the peer id of one."""
    from leasehold.node.identity import load_or_create, peer_id

    _show({"peer_id": peer_id(load_or_create(key).public_key()), "key": str(key)}, as_json)


@trust.command("issue")
def trust_issue(
    key: Path = typer.Argument(help="Private key of the root."),
    peers: list[str] = typer.Argument(help="Peer ids to vouch for."),
    days: int = typer.Option(365, min=1, help="How long the certificates are valid."),
    max_chain: int = typer.Option(5, min=1, max=15, help="Longest chain the root allows."),
) -> None:
    """Print a certificate file for `system_services.trust_graph.certificates`."""
    import time

    from leasehold.node import trust as chains
    from leasehold.node.identity import load_or_create, peer_id

    private = load_or_create(key)
    now, root = int(time.time()), peer_id(private.public_key())
    end = now + days * 86400
    for peer in peers:
        chains.public_key(peer)
    first = chains.issue(private, root, issued_at=now, expires_at=end)
    file = {
        "roots": {root: max_chain},
        "certificates": [
            [first, chains.issue(private, peer, issued_at=now, expires_at=end)] for peer in peers
        ],
    }
    print(json.dumps(file, indent=2))
