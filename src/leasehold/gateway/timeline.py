"""The story of a lease: its events from order to healthy, and what it waits for now.

``timeline`` reads the order's and the lease's entities, nothing else: what is shown is what the log
says. ``unmet`` is the first condition on the path that does not hold yet, with what would make it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from leasehold.core.errors import LeaseholdError, not_found
from leasehold.events.event import Entity, Event, WillBlock
from leasehold.events.log import Log
from leasehold.model.market import LeaseId
from leasehold.model.spans import trace_id

PATH: tuple[tuple[str, str, str], ...] = (
    ("order.created", "order", "the market has not shown us the order; is the index running?"),
    (
        "bid.created",
        "bid",
        "no bid of ours yet; see `leasehold order ls` and the provider's limits",
    ),
    ("lease.created", "lease", "the tenant has not accepted a bid"),
    ("lease.won", "lease won", "the provider has not taken the lease up yet"),
    ("manifest.received", "manifest accepted", "the tenant has not sent a manifest"),
    ("deploy.image_pulled", "image pulled", "the image is being pulled"),
    ("deploy.volume_ready", "volume ready", "the volume is being prepared"),
    ("deploy.started", "started", "the container is being started"),
    ("deploy.running", "running", "not every replica was started yet"),
    ("deploy.healthy", "healthy", "the workload runs and does not answer yet"),
)
"""Event type, its name for people, and what is missing while it has not happened."""

_ORDER_STEPS = {"order.created", "bid.created"}
_NAMES = {type_: name for type_, name, _ in PATH}
_OPTIONAL = {"deploy.volume_ready"}
_AGAIN = ("deploy.healthy", "deploy.unhealthy", "deploy.failed", "deploy.running")


class Step(msgspec.Struct, frozen=True):
    """One event. ``at`` is seconds UTC, ``ms`` milliseconds since the first step."""

    name: str
    type: str
    at: float
    ms: float
    detail: dict[str, Any] = {}


class Timeline(msgspec.Struct, frozen=True):
    """``state`` is waiting, running, healthy, unhealthy, failed or closed; ``services`` are the
    names of the newest manifest's. ``trace`` is its trace's id, 32 hex digits, whether
    or not traces are collected."""

    lease: str
    state: str
    steps: list[Step]
    unmet: str = ""
    uris: list[str] = []
    services: list[str] = []
    trace: str = ""


async def timeline(log: Log, lease: LeaseId) -> Timeline:
    """The story of ``lease``; LeaseholdError ``lease_not_found`` when the log knows none."""
    own = await _events(log, Entity("lease", str(lease)))
    if not own:
        raise not_found("lease", str(lease), hint="`leasehold lease ls` lists them.")
    order = await _events(log, Entity("order", str(lease.order)))
    events = [e for e in order if _concerns(e, lease)] + own
    events.sort(key=lambda event: event.seq)
    start = events[0].at
    steps = [
        Step(
            _NAMES.get(event.type, event.type.replace(".", " ").replace("_", " ")),
            event.type,
            event.at,
            round((event.at - start) * 1000, 1),
            _detail(event),
        )
        for event in events
    ]
    state, unmet = _state(events)
    return Timeline(
        str(lease), state, steps, unmet, _uris(events), _services(events),
        f"{trace_id(lease):032x}",
    )  # fmt: skip


async def _events(log: Log, entity: Entity) -> list[Event]:
    return [e async for e in log.read(entity) if not isinstance(e, WillBlock)]


def _concerns(event: Event, lease: LeaseId) -> bool:
    if event.type not in _ORDER_STEPS:
        return False
    return event.type == "order.created" or _detail(event).get("provider") == lease.provider


def _detail(event: Event) -> dict[str, Any]:
    """What is worth reading of a payload: scalars, without the ids everybody knows."""
    try:
        values = msgspec.json.decode(event.data)
    except msgspec.DecodeError:
        return {"undecodable": True}
    id = values.pop("id", {})
    shown: dict[str, Any] = {
        k: v for k, v in values.items() if isinstance(v, str | int | float | bool) and v != ""
    }
    if event.type == "bid.created" and isinstance(id, dict):
        shown["provider"] = id.get("provider")
    if isinstance(values.get("price"), dict):
        shown["price"] = f"{values['price'].get('amount')} {values['price'].get('denom')}"
    return shown


def _state(events: Sequence[Event]) -> tuple[str, str]:
    types = [event.type for event in events]
    if "lease.closed" in types:
        return "closed", ""
    newest = next((e for e in reversed(events) if e.type in _AGAIN), None)
    manifest = max((i for i, t in enumerate(types) if t == "manifest.received"), default=-1)
    if newest is not None and newest.type in ("deploy.failed", "deploy.unhealthy"):
        detail = _detail(newest)
        why = str(detail.get("message") or detail.get("reason") or "")
        again = "; it is tried again by itself" if detail.get("final") is False else ""
        return newest.type.removeprefix("deploy."), why + again
    since = types[manifest:] if manifest >= 0 else types
    met = [type_ in (since if type_.startswith("deploy.") else types) for type_, _, _ in PATH]
    # A step that is behind a later one was done, even if its own event was cut off by a crash.
    furthest = max((index for index, done in enumerate(met) if done), default=-1)
    for type_, _, missing in PATH[furthest + 1 :]:
        if type_ not in _OPTIONAL:
            return ("running" if "deploy.running" in since else "waiting"), missing
    return "healthy", ""


def _uris(events: Sequence[Event]) -> list[str]:
    for event in reversed(events):
        if event.type == "deploy.running":
            try:
                return list(event.payload.uris)
            except LeaseholdError:
                return []
    return []


def _services(events: Sequence[Event]) -> list[str]:
    """The names of the services of the newest manifest."""
    for event in reversed(events):
        if event.type == "manifest.received":
            try:
                return [str(s["name"]) for s in event.payload.group.get("services") or ()]
            except (LeaseholdError, KeyError, TypeError):
                return []
    return []
