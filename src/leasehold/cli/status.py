"""``leasehold status``: one screen that says what runs here and how it is.

Everything is asked of the running provider. A part that does not answer is an alert of its own and
leaves the rest of the screen as it is. Without the operator's token only what anybody may see is
shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

app = typer.Typer(add_completion=False)

TIMEOUT = 5.0
"""Seconds a part may take to answer."""

LAG_BLOCKS = 10
"""Blocks the index may be behind the market before it is an alert."""

STUCK = ("failed", "unhealthy")
"""States of a lease that are an alert."""

NEEDS_SOMEBODY = ("parked", "paused")
"""States of an activity that nothing but an operator ends."""

ADDRESS = re.compile(r"\bakash1[0-9a-z]{38}\b")


@app.command()
def status(
    state: Path = typer.Option(None, help="State folder of the provider of this machine."),
    as_json: bool = typer.Option(False, "--json", help="As JSON."),
) -> None:
    """Say in one screen how the provider of this machine is. Exit code 1 when it is not ready."""
    from leasehold.cli.state import print_json

    found = collect(state)
    if as_json:
        print_json(found)
    else:
        _print(found)
    if not found["ready"]:
        raise typer.Exit(1)


def collect(state: Path | None) -> dict[str, Any]:
    """All of the screen as one document; LeaseholdError ``not_up`` when nothing runs."""
    import httpx
    import msgspec

    from leasehold.cli.client import operator
    from leasehold.cli.state import running
    from leasehold.core.errors import LeaseholdError

    here = running(state)
    alerts: list[dict[str, str]] = []
    found: dict[str, Any] = {"ready": False, "provider": msgspec.to_builtins(here)}

    def part(name: str, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except (LeaseholdError, httpx.HTTPError, ValueError, KeyError) as error:
            said = error.message if isinstance(error, LeaseholdError) else str(error)
            alerts.append({"about": name, "cause": said or type(error).__name__})
            return None

    with httpx.Client(timeout=TIMEOUT, trust_env=False) as http:
        ready = part("provider", lambda: http.get(f"{here.ops}/readyz").json()) or {}
        found["ready"] = bool(ready.get("ready"))
        for name, why in ready.get("reasons", {}).items():
            alerts.append({"about": name, "cause": why})
        version = part("gateway", lambda: http.get(f"{here.gateway}/version").json())
        found["version"] = (version or {}).get("leasehold", {}).get("version")
        height = part("market", lambda: http.get(f"{here.ledger}/status").json()["result"])
        found["market"] = _market(height, part("metrics", lambda: _gauges(http, here.ops)) or {})
    behind = found["market"].get("behind")
    if behind is not None and behind > LAG_BLOCKS:
        alerts.append({"about": "index", "cause": f"{behind} blocks behind the market"})
    if version is None:
        found["alerts"] = alerts
        return found  # Nothing of what follows would answer.
    try:
        with operator(state) as api:
            found["leases"] = part("leases", lambda: _leases(api.get("/v1/leases"), alerts))
            found["capacity"] = part(
                "inventory", lambda: _capacity(api.get("/v1/inventory"), alerts)
            )
            found["images"] = part("images", lambda: _images(api.get("/v1/images")))
            part("activities", lambda: _parked(api.get("/v1/observe/tasks"), alerts))
    except LeaseholdError as error:
        alerts.append({"about": "operator", "cause": error.message})
    found["alerts"] = alerts
    return found


def _market(status: dict[str, Any] | None, gauges: dict[str, float]) -> dict[str, Any]:
    out: dict[str, Any] = {"height": None, "indexed": None, "behind": None}
    if status:
        out["chain"] = status["node_info"]["network"]
        out["height"] = int(status["sync_info"]["latest_block_height"])
    if "leasehold_market_feed_height" in gauges:
        out["indexed"] = int(gauges["leasehold_market_feed_height"])
    if out["height"] is not None and out["indexed"] is not None:
        out["behind"] = max(0, out["height"] - out["indexed"])
    return out


def _gauges(http: Any, ops: str) -> dict[str, float]:
    """Gauges without labels, by name."""
    answer = http.get(f"{ops}/metrics")
    out = {}
    for line in answer.text.splitlines():
        name, _, value = line.partition(" ")
        if not line.startswith("#") and "{" not in name:
            out[name] = float(value)
    return out


def _leases(rows: list[dict[str, Any]], alerts: list[dict[str, str]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["state"]] = counts.get(row["state"], 0) + 1
        if row["state"] in STUCK:
            cause = row["unmet"] or "no reason was given"
            alerts.append({"about": f"lease {row['lease']}", "cause": f"{row['state']}: {cause}"})
    return counts


def _capacity(found: dict[str, Any], alerts: list[dict[str, str]]) -> dict[str, Any]:
    """By resource: offered, leased, promised to bids and free."""

    def total(rows: list[dict[str, Any]], name: str) -> dict[str, int]:
        out: dict[str, int] = {}
        for row in rows:
            for resource, amount in row[name].items():
                out[resource] = out.get(resource, 0) + amount
        return out

    if found["unavailable"]:
        alerts.append({"about": "bidding", "cause": found["unavailable"]})
    offered, free = total(found["nodes"], "offered"), total(found["nodes"], "available")
    leased, promised = total(found["leased"], "total"), total(found["pending"], "total")
    return {
        resource: {
            "offered": amount,
            "leased": leased.get(resource, 0),
            "promised": promised.get(resource, 0),
            "free": free.get(resource, 0),
        }
        for resource, amount in offered.items()
    }


def _images(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {"count": len(rows), "bytes": sum(row["size"] for row in rows)}


def _parked(tasks: list[dict[str, Any]], alerts: list[dict[str, str]]) -> None:
    for task in tasks:
        error = task.get("error") or {}
        if task["state"] in NEEDS_SOMEBODY:
            cause = f"{task['state']}: {error.get('message') or 'by the operator'}"
            alerts.append({"about": f"{task['activity']} {task['entity']}", "cause": cause})


def _print(found: dict[str, Any]) -> None:
    from leasehold.cli import screen
    from leasehold.cli.market import Names
    from leasehold.cli.tables import table

    here, market = found["provider"], found["market"]
    how = screen.state("ready") if found["ready"] else screen.paint("not ready", "red")
    print(f"provider {screen.paint(here['provider'], 'bold')} is {how}")
    print(f"  version  {found['version'] or 'unknown'}, process {here['pid']}")
    print(f"  gateway  {here['gateway']}")
    print(f"  ingress  {here['ingress']}")
    print(f"  state    {here['state']}")
    if market["height"] is None:
        print("  market   does not answer")
    else:
        lag = market["behind"]
        behind = "" if lag is None else f", we have read {market['indexed']}"
        print(f"  market   {market['chain']} at height {market['height']}{behind}")
    leases = found.get("leases")
    if leases is not None:
        said = ", ".join(f"{n} {screen.state(state)}" for state, n in sorted(leases.items()))
        print(f"  leases   {said or 'none'}")
    images = found.get("images")
    if images is not None:
        print(f"  images   {images['count']} ({screen.size(images['bytes'])})")
    if found.get("capacity"):
        print()
        rows = [
            [
                name,
                *(_amount(name, each[part]) for part in ("offered", "leased", "promised")),
                f"{_bar(each)} {_amount(name, each['free'])}",
            ]
            for name, each in found["capacity"].items()
            if each["offered"]
        ]
        table(["CAPACITY", "OFFERED", "LEASED", "PROMISED", "FREE"], rows, empty="")
    print()
    if not found["alerts"]:
        print(screen.paint("no alerts", "green"))
    names = Names()
    about: dict[str, list[str]] = {}
    for alert in found["alerts"]:
        what = ADDRESS.sub(lambda address: names.address(address[0]), alert["about"])
        about.setdefault(screen.printable(alert["cause"])[:200], []).append(what)
    for cause, parts in about.items():
        print(f"{screen.paint('alert', 'red')}  {', '.join(parts)}: {cause}")


def _bar(each: dict[str, int], cells: int = 12) -> str:
    """Used against offered; promised counts as used."""
    used = each["offered"] - each["free"]
    full = round(cells * used / each["offered"]) if each["offered"] else 0
    return "█" * min(full, cells) + "░" * (cells - min(full, cells))


def _amount(resource: str, amount: int) -> str:
    from leasehold.cli import screen

    if resource == "cpu":
        return f"{amount / 1000:g} cores"
    return str(amount) if resource == "gpu" else screen.size(amount)
