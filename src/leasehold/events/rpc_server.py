"""Serves a log over gRPC to observers elsewhere, each with a token and what it reaches.

A token reaches registries by name, everything of a repo or workflow whose registry and path it
reaches, and other entities by prefixes of ``kind:id``. What a repo or workflow belongs to is only
known from its first event, so for them the check comes with that event (deferred): a history that
does not exist yet is an empty stream, not a refusal.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import grpc
import msgspec

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.events import log_pb2 as pb
from leasehold.events import rpc
from leasehold.events.event import Entity, Event, Signal, WillBlock
from leasehold.events.log import Log
from leasehold.events.rpc_serving import RpcServer
from leasehold.events.settings import Reach

DEFERRED = ("repo", "workflow")
REMEMBERED = 100_000
"""Entities whose owner is remembered; the oldest is looked up again."""


class LogServer(RpcServer):
    """A gRPC server at ``host:port`` (0 picks one); ``tokens`` maps each token to its reach."""

    def __init__(
        self,
        log: Log,
        tokens: Mapping[str, Reach],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        credentials: grpc.ServerCredentials | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(
            "log server", tokens, host, port, credentials, clock, setting="events.port"
        )
        self.log = log
        self.add(rpc.SERVICE, rpc.UNARY, rpc.STREAMS)
        self._owners: dict[Entity, tuple[str, str]] = {}

    async def _check(self, reach: Reach, entity: Entity, first: Event | None = None) -> bool:
        """Raise unless ``entity`` is reached; False while nothing is known of it yet."""
        if reach.everything:
            return True
        if entity.kind == "registry":
            allowed = entity.id in reach.registries
        elif entity.kind in DEFERRED:
            owner = await self._owner(entity, first)
            if owner is None:
                return False
            allowed = reach.volume(*owner)
        else:
            allowed = any(str(entity).startswith(p) for p in reach.prefixes if ":" in p)
        if not allowed:
            raise LeaseholdError(
                "log_out_of_reach",
                f"the token does not reach {entity}",
                kind=Kind.FORBIDDEN,
                got=str(entity),
            )
        return True

    async def _owner(self, entity: Entity, first: Event | None) -> tuple[str, str] | None:
        """Registry and path of a repo or workflow, by the first event of its history."""
        if entity in self._owners:
            return self._owners[entity]
        if first is None:
            async for event in self.log.read(entity):
                if isinstance(event, Event):
                    first = event
                    break
        if first is None:
            return None
        fact = msgspec.json.decode(first.data)
        owner = (str(fact.get("registry", "")), str(fact.get("path") or fact.get("new_path", "")))
        if len(self._owners) >= REMEMBERED:
            del self._owners[next(iter(self._owners))]
        self._owners[entity] = owner
        return owner

    # -- the calls -----------------------------------------------------------------------------

    async def _append(self, request: pb.AppendRequest, reach: Reach) -> pb.AppendResponse:
        entity = rpc.entity_in(request.entity)
        new = [rpc.new_in(event) for event in request.events]
        first = Event(0, entity, new[0].id, None, new[0].type, new[0].data, 0.0) if new else None
        starts = await self.log.head(entity) is None
        await self._check(reach, entity, first if starts else None)
        events = await self.log.append(
            entity,
            request.parent if request.HasField("parent") else None,
            new,
            timers=[rpc.timer_in(timer) for timer in request.timers],
            checkpoint=rpc.checkpoint_in(request.checkpoint)
            if request.HasField("checkpoint")
            else None,
            epoch=request.epoch if request.HasField("epoch") else None,
        )
        return pb.AppendResponse(events=[rpc.event_out(event) for event in events])

    async def _watch(
        self, request: pb.WatchRequest, reach: Reach
    ) -> AsyncIterator[pb.WatchMessage]:
        entity = rpc.entity_in(request.entity)
        checked = await self._check(reach, entity)
        after = request.after if request.HasField("after") else None
        async for item in self.log.read(entity, after, watch=request.watch):
            if isinstance(item, WillBlock):
                yield pb.WatchMessage(will_block=True, tail=item.tail)
                continue
            if not checked:
                checked = await self._check(reach, entity, item)
            yield pb.WatchMessage(event=rpc.event_out(item))

    async def _readall(self, request: pb.ReadAllRequest, reach: Reach) -> AsyncIterator[pb.Event]:
        if not reach.everything:
            raise LeaseholdError(
                "log_out_of_reach", "the token does not reach everything", kind=Kind.FORBIDDEN
            )
        async for event in self.log.read_all(request.after_seq):
            yield rpc.event_out(event)

    async def _signals(
        self, request: pb.SignalsRequest, reach: Reach
    ) -> AsyncIterator[pb.SignalMessage]:
        after = request.after_seq if request.HasField("after_seq") else None
        async for item in self.log.signals(after):
            if not isinstance(item, Signal):
                yield pb.SignalMessage(subscribed=True, seq=item.seq)
            elif await self._visible(reach, item.entity):
                yield pb.SignalMessage(
                    entity=rpc.entity_out(item.entity), head=item.head, seq=item.seq
                )

    async def _visible(self, reach: Reach, entity: Entity) -> bool:
        try:
            return await self._check(reach, entity)
        except LeaseholdError:
            return False

    async def _trim(self, request: pb.TrimRequest, reach: Reach) -> pb.TrimResponse:
        entity = rpc.entity_in(request.entity)
        await self._check(reach, entity)
        return pb.TrimResponse(count=await self.log.trim(entity, request.keep_from))

    async def _query(self, request: pb.QueryRequest, reach: Reach) -> pb.QueryResponse:
        row = pb.QueryResponse.Row
        rows: list[pb.QueryResponse.Row] = []
        match request.WhichOneof("what"):
            case "head":
                entity = rpc.entity_in(request.head)
                await self._check(reach, entity)
                head = await self.log.head(entity)
                if head is not None:
                    rows.append(row(entity=request.head, text=head.id, seq=head.seq))
            case "last_seq":
                rows.append(row(seq=await self.log.last_seq()))
            case "entities":
                wanted = request.entities
                rows = [
                    row(entity=rpc.entity_out(entity), text=head.id, seq=head.seq)
                    for entity, head in await self.log.entities(wanted.kind, wanted.prefix)
                    if await self._visible(reach, entity)
                ]
            case "changed":
                rows = [
                    row(entity=rpc.entity_out(s.entity), text=s.head, seq=s.seq)
                    for s in await self.log.changed(request.changed)
                    if await self._visible(reach, s.entity)
                ]
            case "due_timers":
                due = await self.log.due_timers(
                    request.due_timers.until, limit=request.due_timers.limit
                )
                rows = [
                    row(entity=rpc.entity_out(t.entity), text=t.name, time=t.due_at)
                    for t in due
                    if await self._visible(reach, t.entity)
                ]
            case "next_timer":
                asked = request.next_timer
                at = await self.log.next_timer(asked.after if asked.HasField("after") else None)
                rows = [] if at is None else [row(time=at)]
            case "checkpoints":
                rows = [
                    row(entity=rpc.entity_out(entity), checkpoint=rpc.checkpoint_out(checkpoint))
                    for entity, checkpoint in (
                        await self.log.checkpoints(request.checkpoints)
                    ).items()
                    if await self._visible(reach, entity)
                ]
        return pb.QueryResponse(rows=rows)
