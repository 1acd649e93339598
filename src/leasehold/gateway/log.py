"""Routes of the event log and of the activities over it, for the operator."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from litestar import get, post
from litestar.handlers import BaseRouteHandler
from litestar.response import Stream

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.events.event import Entity, Event, Signal, Subscribed
from leasehold.events.log import Log
from leasehold.gateway.auth import operator
from leasehold.observe.engine import Engine

MOST = 1000
"""Events one answer holds."""


class Target(msgspec.Struct, forbid_unknown_fields=True):
    """One activity: its name, and the entity as ``kind:id``."""

    activity: str
    entity: str
    key: str = ""


def shown(event: Event) -> dict[str, Any]:
    """An event as JSON; data that is no JSON is shown as text."""
    try:
        data = msgspec.json.decode(event.data)
    except msgspec.DecodeError:
        data = event.data.decode(errors="replace")
    return {
        "seq": event.seq,
        "at": event.at,
        "entity": str(event.entity),
        "type": event.type,
        "id": event.id,
        "data": data,
    }


def _entity(text: str) -> Entity:
    try:
        return Entity.parse(text)
    except ValueError as error:
        raise LeaseholdError(
            "bad_entity", str(error), kind=Kind.MALFORMED, expected="kind:id", got=text
        ) from None


async def _all(log: Log, after: int, kind: str, limit: int) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    async for event in log.read_all(after, limit=MOST):
        if not kind or event.entity.kind == kind:
            out.append(shown(event))
            if len(out) >= min(limit, MOST):
                break
    return out


async def _follow(log: Log, after: int, kind: str) -> AsyncIterator[bytes]:
    """One JSON line an event, in commit order, as they come."""
    seq = after
    async for signal in log.signals(after):
        newest = signal.seq
        if isinstance(signal, Signal) and newest <= seq:
            continue
        if isinstance(signal, Subscribed):
            newest = await log.last_seq()
        async for event in log.read_all(seq, limit=MOST):
            seq = event.seq
            if not kind or event.entity.kind == kind:
                yield msgspec.json.encode(shown(event)) + b"\n"


def routes(log: Log, engine: Engine) -> Sequence[BaseRouteHandler]:
    """Every route of this area."""

    @get("/v1/events", guards=[operator], tags=["events"])
    async def events_list(after: int = 0, kind: str = "", limit: int = 100) -> list[dict[str, Any]]:
        """Events of the whole log after a sequence number, in commit order; at most 1,000."""
        return await _all(log, after, kind, limit)

    @get("/v1/events/last", guards=[operator], tags=["events"])
    async def events_last() -> dict[str, int]:
        """The newest sequence number."""
        return {"seq": await log.last_seq()}

    @get("/v1/events/entity", guards=[operator], tags=["events"])
    async def events_entity(entity: str, after: str | None = None) -> list[dict[str, Any]]:
        """The history of one entity (kind:id) after an event; at most 1,000 events."""
        out: list[dict[str, Any]] = []
        async for event in log.read(_entity(entity), after):
            if isinstance(event, Event):
                out.append(shown(event))
            if len(out) >= MOST:
                break
        return out

    @get("/v1/events/tail", guards=[operator], tags=["events"])
    async def events_tail(after: int | None = None, kind: str = "") -> Stream:
        """Events as they are committed, one JSON line each."""
        start = await log.last_seq() if after is None else after
        return Stream(_follow(log, start, kind), media_type="application/x-ndjson")

    @get("/v1/observe", guards=[operator], tags=["observe"], sync_to_thread=False)
    def observe_counts() -> list[dict[str, Any]]:
        """Each kind of activity with its numbers by state."""
        return engine.operators.counts()

    @get("/v1/observe/tasks", guards=[operator], tags=["observe"], sync_to_thread=False)
    def observe_tasks(activity: str = "", status: str = "") -> list[dict[str, Any]]:
        """Activities that are not simply asleep."""
        return engine.operators.tasks(activity, status)

    @get("/v1/observe/task", guards=[operator], tags=["observe"], sync_to_thread=False)
    def observe_inspect(activity: str, entity: str, key: str = "") -> dict[str, Any]:
        """Everything about one activity."""
        return engine.operators.inspect(activity, _key(entity, key))

    @post("/v1/observe/kick", guards=[operator], tags=["observe"], status_code=200)
    async def observe_kick(data: Target) -> dict[str, Any]:
        """Run it now, whatever it waits for."""
        engine.operators.kick(data.activity, _key(data.entity, data.key))
        return engine.operators.inspect(data.activity, _key(data.entity, data.key))

    @post("/v1/observe/pause", guards=[operator], tags=["observe"], status_code=200)
    async def observe_pause(data: Target) -> dict[str, Any]:
        """Start nothing more until it is resumed, also after a restart."""
        await engine.operators.pause(data.activity, _key(data.entity, data.key))
        return engine.operators.inspect(data.activity, _key(data.entity, data.key))

    @post("/v1/observe/resume", guards=[operator], tags=["observe"], status_code=200)
    async def observe_resume(data: Target) -> dict[str, Any]:
        """Let it run again."""
        await engine.operators.resume(data.activity, _key(data.entity, data.key))
        return engine.operators.inspect(data.activity, _key(data.entity, data.key))

    @post("/v1/observe/clear", guards=[operator], tags=["observe"], status_code=200)
    async def observe_clear(data: Target) -> dict[str, Any]:
        """Forget its stored error and try again."""
        await engine.operators.clear(data.activity, _key(data.entity, data.key))
        return engine.operators.inspect(data.activity, _key(data.entity, data.key))

    return [
        events_list,
        events_last,
        events_entity,
        events_tail,
        observe_counts,
        observe_tasks,
        observe_inspect,
        observe_kick,
        observe_pause,
        observe_resume,
        observe_clear,
    ]


def _key(entity: str, key: str) -> str:
    id = _entity(entity).id
    return f"{id}\0{key}" if key else id
