"""The log over gRPC, so that an observer can run in another process or on another host.

Messages are in ``proto/log/log.proto``; here are the parts both ends share: their conversion, and
errors, which travel as JSON in the details of the status of their kind. ``rpc_server`` serves a
log, ``rpc_client`` is one.
"""

from __future__ import annotations

import json
from typing import Any

import grpc

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.events import log_pb2 as pb
from leasehold.events.event import Checkpoint, Entity, Event, NewEvent, Timer
from leasehold.events.log import StaleOwner, Trimmed, VersionConflict

SERVICE = "leasehold.log.v1.EventLog"

UNARY: dict[str, tuple[Any, Any]] = {
    "Append": (pb.AppendRequest, pb.AppendResponse),
    "Query": (pb.QueryRequest, pb.QueryResponse),
    "Trim": (pb.TrimRequest, pb.TrimResponse),
}
STREAMS: dict[str, tuple[Any, Any]] = {
    "Watch": (pb.WatchRequest, pb.WatchMessage),
    "ReadAll": (pb.ReadAllRequest, pb.Event),
    "Signals": (pb.SignalsRequest, pb.SignalMessage),
}

OPTIONS = [
    ("grpc.keepalive_time_ms", 40_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),
    ("grpc.max_receive_message_length", 32 << 20),
    ("grpc.max_send_message_length", 32 << 20),
]
"""Keepalive each 40 s also without streams, pings accepted 30 s apart: the original's values."""

_KINDS = {getattr(grpc.StatusCode, kind.grpc): kind for kind in reversed(Kind)}


def status_of(error: LeaseholdError) -> tuple[grpc.StatusCode, str]:
    """What to abort a call with."""
    body = {**error.to_dict(), "kind": error.kind.name}
    if isinstance(error, VersionConflict):
        body["head"] = error.head
    return getattr(grpc.StatusCode, error.kind.grpc), json.dumps(body)


def error_of(failure: grpc.aio.AioRpcError, entity: Entity | None = None) -> LeaseholdError:
    """The error a refusal carries; a plain one of its status when there is none."""
    try:
        body: dict[str, Any] = json.loads(failure.details() or "")
        code, kind = str(body["code"]), Kind[body["kind"]]
    except (ValueError, KeyError, TypeError):
        return LeaseholdError(
            "log_unreachable",
            f"the event log does not answer: {failure.details() or failure.code().name}",
            kind=_KINDS.get(failure.code(), Kind.UNAVAILABLE),
            retry_after=1.0,
        )
    somewhere = entity or Entity("?", "?")
    if code == "version_conflict":
        return VersionConflict(somewhere, body.get("expected"), body.get("head"))
    if code == "tail_trimmed":
        return Trimmed(somewhere, str(body.get("got", "")))
    if code == "stale_owner":
        return StaleOwner(somewhere, int(body.get("got", 0)), int(body.get("expected", 0)))
    return LeaseholdError(
        code,
        str(body.get("message", "")),
        kind=kind,
        path=str(body.get("path", "")),
        expected=body.get("expected"),
        got=body.get("got"),
        retry_after=body.get("retry_after"),
    )


def entity_out(entity: Entity) -> pb.Entity:
    return pb.Entity(kind=entity.kind, id=entity.id)


def entity_in(entity: pb.Entity) -> Entity:
    return Entity(entity.kind, entity.id)


def event_out(event: Event) -> pb.Event:
    return pb.Event(
        seq=event.seq,
        entity=entity_out(event.entity),
        id=event.id,
        parent=event.parent,
        type=event.type,
        data=event.data,
        at=event.at,
    )


def event_in(event: pb.Event) -> Event:
    return Event(
        event.seq,
        entity_in(event.entity),
        event.id,
        event.parent if event.HasField("parent") else None,
        event.type,
        event.data,
        event.at,
    )


def new_out(event: NewEvent) -> pb.NewEvent:
    return pb.NewEvent(id=event.id, type=event.type, data=event.data)


def new_in(event: pb.NewEvent) -> NewEvent:
    return NewEvent(event.id, event.type, event.data)


def timer_out(timer: Timer) -> pb.Timer:
    return pb.Timer(name=timer.name, due_at=timer.due_at, was=timer.was)


def timer_in(timer: pb.Timer) -> Timer:
    return Timer(
        timer.name,
        timer.due_at if timer.HasField("due_at") else None,
        timer.was if timer.HasField("was") else None,
    )


def checkpoint_out(checkpoint: Checkpoint) -> pb.Checkpoint:
    return pb.Checkpoint(
        activity=checkpoint.activity,
        tail=checkpoint.tail,
        state=checkpoint.state,
        seq=checkpoint.seq,
    )


def checkpoint_in(checkpoint: pb.Checkpoint) -> Checkpoint:
    return Checkpoint(
        checkpoint.activity,
        checkpoint.tail if checkpoint.HasField("tail") else None,
        checkpoint.state if checkpoint.HasField("state") else None,
        checkpoint.seq,
    )
