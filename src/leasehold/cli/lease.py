"""``leasehold lease``: list, explain, follow, enter and close leases.

As the tenant for leases of the accounts in the home folder, as the operator for all others of the
provider of this machine (`leasehold.cli.reach`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leasehold.cli.completion import lease_names
from leasehold.cli.market import JSON, LEDGER, STATE, YES

if TYPE_CHECKING:
    from leasehold.cli.reach import Lease, Reach

app = typer.Typer(help="Leases: list, explain, follow, enter and close them.", no_args_is_help=True)

WHICH = typer.Argument(
    help="A lease: acme/1, 1, a service's or host's name, or the beginning of one.",
    autocompletion=lease_names,
)
AS = typer.Option(None, "--as", help="Only as this account; default: whoever may.")
FOLLOW = typer.Option(False, "--follow", "-f", help="Go on with what comes, until Ctrl-C.")

LONG_POLL = 20.0
"""Seconds a provider may hold a question for news of a timeline."""

ENDED = ("healthy", "failed", "closed")
"""States in which nothing more is waited for."""

GONE_WAIT = 60.0
"""Seconds ``close --wait`` gives the provider to clear the workload away."""


def _reach(state: Path | None, ledger: str | None, account: str | None) -> Reach:
    from leasehold.cli.reach import Reach

    return Reach(state=state, ledger=ledger, account=account)


@app.command("ls")
def list_leases(
    everything: bool = typer.Option(False, "--all", "-a", help="Closed leases too."),
    only: str = typer.Option(None, "--only", help="Only in this state: healthy, failed, …"),
    account: str = AS,
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """List leases: all of the provider here, else those of your accounts."""
    from leasehold.cli import screen
    from leasehold.cli.state import print_json
    from leasehold.cli.tables import table

    with _reach(state, ledger, account) as reach:
        rows = reach.rows(closed=everything or only == "closed")
    rows = [row for row in rows if only is None or row.state == only]
    if as_json:
        print_json([row.to_dict() for row in rows])
        return
    table(
        ["LEASE", "STATE", "SINCE", "SERVICES", "URL", "+WAITS FOR", "+PROVIDER", "+ID"],
        [
            [
                row.short,
                screen.state(row.state),
                screen.ago(row.at),
                ",".join(row.services),
                row.uris[0] if row.uris else "",
                row.unmet,
                row.id.provider,
                str(row.id),
            ]
            for row in rows
        ],
        empty="no leases; `leasehold deploy FILE` makes one"
        if everything
        else "no live leases; --all shows closed ones",
    )


@app.command()
def status(
    name: str = WHICH,
    account: str = AS,
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Show a lease's services, replicas, addresses and how far its manifest has come."""
    from leasehold.cli import screen
    from leasehold.cli.state import print_json
    from leasehold.cli.tables import table
    from leasehold.core.errors import Kind, LeaseholdError

    with _reach(state, ledger, account) as reach:
        lease = reach.find(name)
        story = lease.timeline()
        found: dict[str, Any] = {"services": {}}
        try:
            found = lease.status()
        except LeaseholdError as error:
            # Nothing was deployed yet: the timeline alone says how it is.
            if error.kind is not Kind.NOT_FOUND:
                raise
        short = reach.short(lease.id)
    if as_json:
        print_json({"lease": str(lease.id), "name": short, **found, "timeline": story})
        return
    since = screen.ago(story["steps"][-1]["at"])
    print(f"{screen.paint(short, 'bold')} is {screen.state(story['state'])} for {since}")
    if story.get("unmet"):
        print(f"  waits for: {story['unmet']}")
    for problem in found.get("errors") or filter(None, [_message(found.get("error"))]):
        print(f"  {screen.paint('error', 'red')}: {screen.printable(problem)}")
    for uri in story["uris"]:
        print(f"  {uri}")
    for port in _ports(found):
        print(f"  {port}")
    hash = found.get("running_hash") or (found.get("manifest") or {}).get("hash")
    if hash:
        print(f"  manifest {hash[:16]}")
    rows = []
    for service in found["services"].values():
        replicas = service.get("running") or []
        available = service["available"]
        rows.append(
            [
                service["name"],
                f"{'?' if available is None else available}/{service['total']}",
                f"{sum(r.get('cpu_seconds', 0) for r in replicas):.1f} s",
                screen.size(sum(r.get("memory_bytes", 0) for r in replicas)),
                service.get("image", ""),
                sum(r.get("oom_kills", 0) for r in replicas),
            ]
        )
    print()
    table(
        ["SERVICE", "UP", "CPU", "MEMORY", "IMAGE", "+OUT OF MEMORY"],
        rows,
        empty="no services yet",
    )


@app.command()
def explain(
    name: str = WHICH,
    follow: bool = FOLLOW,
    account: str = AS,
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Tell what happened to a lease, in milliseconds since the order, and what it waits for."""
    from leasehold.cli import screen
    from leasehold.cli.state import print_json

    with _reach(state, ledger, account) as reach:
        lease = reach.find(name)
        story = lease.timeline()
        if as_json and not follow:
            print_json(story)
            return
        if not as_json:
            print(f"{screen.paint(reach.short(lease.id), 'bold')}  {lease.id}")
        _steps(story["steps"], 0.0, as_json=as_json)
        while follow and story["state"] not in ENDED:
            known = len(story["steps"])
            story = lease.timeline(after=known, wait=LONG_POLL)
            before = story["steps"][known - 1]["ms"]
            _steps(story["steps"][known:], before, as_json=as_json)
    if as_json:
        return
    print(f"is {screen.state(story['state'])}")
    if story.get("unmet"):
        print(f"first unmet condition: {story['unmet']}")
    for uri in story["uris"] if story["state"] != "closed" else ():
        print(f"  {uri}")


def _steps(steps: list[dict[str, Any]], before: float, *, as_json: bool) -> None:
    from leasehold.cli import screen

    for step in steps:
        if as_json:
            print(json.dumps(step), flush=True)
            continue
        detail = step.get("detail", {})
        said = " ".join(f"{k}={v}" for k, v in detail.items() if k not in ("height", "created"))
        since = screen.paint(f"{step['ms'] - before:+10.1f}", "dim")
        said = screen.paint(screen.printable(said)[:200], "dim")
        print(f"  {step['ms']:10.1f} ms  {since}  {step['name']:20} {said}".rstrip(), flush=True)
        before = step["ms"]


@app.command()
def logs(
    name: str = WHICH,
    service: list[str] = typer.Option([], "--service", "-s", help="Only of it; may be repeated."),
    follow: bool = FOLLOW,
    tail: int = typer.Option(
        100, "--tail", "-n", help="Last lines of each replica.", min=0, max=10_000
    ),
    search: str = typer.Option("", "--search", help="Only lines that contain it."),
    account: str = AS,
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Print what a lease's services write; with --json a JSON object a line."""
    from leasehold.cli import screen

    with _reach(state, ledger, account) as reach:
        lease = reach.find(name)
        wanted = [one for each in service for one in each.split(",") if one]
        for line in lease.logs(wanted, follow=follow, tail=tail, search=search):
            if as_json:
                print(json.dumps(line), flush=True)
            else:
                said = screen.paint(line["name"], "cyan")
                print(f"{said}  {screen.printable(line['message'])}", flush=True)


@app.command()
def events(
    name: str = WHICH,
    follow: bool = FOLLOW,
    account: str = AS,
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Print the events of a lease, oldest first; with --json a JSON object a line."""
    import datetime as dt

    from leasehold.cli import screen

    with _reach(state, ledger, account) as reach:
        for event in reach.find(name).events(follow=follow):
            if as_json:
                print(json.dumps(event), flush=True)
                continue
            at = dt.datetime.fromtimestamp(event["at"], dt.UTC).isoformat(timespec="milliseconds")
            what = str(event.get("reason") or event["type"])
            note = str(event.get("note") or json.dumps(event.get("data", {})))
            bad = event["type"] == "Warning"
            print(
                f"{at}  {screen.paint(what, *(['yellow'] if bad else []))}"
                f"  {screen.paint(screen.printable(note)[:300], 'dim')}",
                flush=True,
            )


def shell(
    name: str = WHICH,
    command: list[str] = typer.Argument(None, help="What to run; default: a shell."),
    service: str = typer.Option(None, "--service", "-s", help="Which service, if several."),
    replica: int = typer.Option(0, "--replica", help="Which replica of it."),
    tty: bool = typer.Option(None, "--tty/--no-tty", "-t/-T", help="A terminal; default: as here."),
    account: str = AS,
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Run a command inside a service; its exit code becomes this one's."""
    from leasehold.cli.shell import run

    with _reach(state, ledger, account) as reach:
        lease = reach.find(name)
        chosen = service or _only_service(lease)
        code = run(lease, chosen, command or ["/bin/sh"], replica=replica, tty=tty, quiet=as_json)
    if as_json:
        from leasehold.cli.state import print_json

        print_json(code)
        raise typer.Exit(code["exit_code"])
    raise typer.Exit(code["exit_code"])


app.command("shell", context_settings={"ignore_unknown_options": True})(shell)
app.command("exec", context_settings={"ignore_unknown_options": True}, hidden=True)(shell)


def _only_service(lease: Lease) -> str:
    from leasehold.core.errors import Kind, LeaseholdError

    services = list(lease.status()["services"])
    if len(services) != 1:
        raise LeaseholdError(
            "service_ambiguous",
            f"say which service with --service: {', '.join(services) or 'there is none'}",
            kind=Kind.CONFLICT if services else Kind.NOT_FOUND,
        )
    return str(services[0])


def _tenants_only(reach: Reach, lease: Lease, what: str) -> Exception:
    from leasehold.core.errors import Kind, LeaseholdError

    return LeaseholdError(
        "tenant_only",
        f"only its tenant can {what} {reach.short(lease.id)}; the key of {lease.id.owner} is not "
        "in the home folder (LEASEHOLD_HOME)",
        kind=Kind.FORBIDDEN,
        got=str(lease.id),
    )


@app.command()
def close(
    name: str = WHICH,
    yes: bool = YES,
    wait: bool = typer.Option(True, help="Wait until nothing of it runs any more."),
    account: str = AS,
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """End a lease: its workload goes, its persistent volumes are frozen and kept for a while."""
    from leasehold.cli.confirm import confirm
    from leasehold.cli.market import done

    with _reach(state, ledger, account) as reach:
        lease = reach.find(name)
        short = reach.short(lease.id)
        who = "" if lease.key else ", which is another's, as decommissioned"
        confirm(
            f"Close {short}{who}? Its workload ends; persistent volumes are frozen.",
            yes=yes,
            as_json=as_json,
        )
        if lease.key is None:
            lease.api.post(f"{lease.base}/close")
        else:
            reach.on_market(lambda client: client.close_lease(lease.id), lease.key)
        gone = _await_gone(lease) if wait else False
    text = f"closed {short}" + ("; nothing of it runs any more" if gone else "")
    done(as_json, text, lease=str(lease.id), name=short, gone=gone)


def _await_gone(lease: Lease) -> bool:
    """Until the workload is removed; at once when there was none, False after a while."""
    import time

    deadline = time.monotonic() + GONE_WAIT
    story = lease.timeline()
    while (left := deadline - time.monotonic()) > 0:
        types = [step["type"] for step in story["steps"]]
        if "deploy.removed" in types:
            return True
        if "lease.closed" in types and "manifest.received" not in types:
            return True
        story = lease.timeline(after=len(types), wait=min(left, LONG_POLL))
    return False


@app.command()
def history(
    name: str = WHICH,
    account: str = AS,
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Show the manifests that were accepted, newest first: who sent which hash when."""
    from leasehold.cli.manifest import show_history

    with _reach(state, ledger, account) as reach:
        show_history(reach.find(name).manifests(), as_json)


@app.command()
def rollback(
    name: str = WHICH,
    hash: str = typer.Argument(None, help="Beginning of its hash; default: the one before."),
    wait: bool = typer.Option(True, help="Wait until it is healthy or failed."),
    yes: bool = YES,
    account: str = AS,
    ledger: str = LEDGER,
    state: Path = STATE,
    as_json: bool = JSON,
) -> None:
    """Go back to a manifest that was accepted before."""
    from leasehold.cli import manifest
    from leasehold.cli.confirm import confirm

    deployment = _deployment(name, state, ledger, account)
    hash = hash or manifest.previous(deployment, ledger, state)
    confirm(f"Take {deployment} back to manifest {hash[:12]}?", yes=yes, as_json=as_json)
    manifest.rollback(hash, deployment, wait, ledger, state, as_json)


def _deployment(name: str, state: Path | None, ledger: str | None, account: str | None) -> str:
    """``account/dseq`` of a lease of one's own."""
    with _reach(state, ledger, account) as reach:
        lease = reach.find(name)
        if lease.key is None:
            raise _tenants_only(reach, lease, "roll back")
        return f"{reach.accounts.name_of(lease.id.owner)}/{lease.id.dseq}"


def _message(error: dict[str, Any] | None) -> str:
    return f"{error['code']}: {error['message']}" if error else ""


def _ports(found: dict[str, Any]) -> list[str]:
    ports = found.get("forwarded_ports") or []
    if isinstance(ports, dict):
        ports = [p for each in ports.values() for p in (each if isinstance(each, list) else [each])]
    return [" ".join(f"{k}={v}" for k, v in p.items()) if isinstance(p, dict) else str(p)
            for p in ports]  # fmt: skip
