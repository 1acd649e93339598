"""A log somewhere else, over gRPC: an engine over it runs as it does beside the log.

Streams end when the connection does; the engine subscribes again from the last sequence number it
knows and asks what it missed, so nothing is lost by that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from leasehold.core.clock import Clock
from leasehold.core.service import Service, State, not_running
from leasehold.events import log_pb2 as pb
from leasehold.events import rpc
from leasehold.events.event import (
    Checkpoint,
    DueTimer,
    Entity,
    Event,
    Head,
    NewEvent,
    Signal,
    Subscribed,
    Timer,
    WillBlock,
)
from leasehold.events.log import Standing, refuse_oversized

DEADLINE = 30.0
"""Seconds a call that is no stream may take."""


class RemoteLog(Service):
    """A :class:`leasehold.events.log.Log` at ``target`` (host:port), reached with ``token``."""

    def __init__(
        self,
        target: str,
        token: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__("remote log", clock=clock)
        self.target = target
        self.credentials = credentials
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._calls: dict[str, Any] = {}

    async def start(self) -> None:
        channel = (
            grpc.aio.secure_channel(self.target, self.credentials, options=rpc.OPTIONS)
            if self.credentials is not None
            else grpc.aio.insecure_channel(self.target, options=rpc.OPTIONS)
        )
        self.resources.push_async_callback(channel.close, None)
        for name, (request, response) in rpc.UNARY.items():
            self._calls[name] = channel.unary_unary(
                f"/{rpc.SERVICE}/{name}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
        for name, (request, response) in rpc.STREAMS.items():
            self._calls[name] = channel.unary_stream(
                f"/{rpc.SERVICE}/{name}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )

    async def _call(self, name: str, request: Any, entity: Entity | None = None) -> Any:
        if self.state is not State.RUNNING:
            raise not_running(self.name)
        try:
            return await self._calls[name](request, metadata=self._metadata, timeout=DEADLINE)
        except grpc.aio.AioRpcError as failure:
            raise rpc.error_of(failure, entity) from None

    async def _stream(
        self, name: str, request: Any, entity: Entity | None = None
    ) -> AsyncIterator[Any]:
        if self.state is not State.RUNNING:
            raise not_running(self.name)
        call = self._calls[name](request, metadata=self._metadata)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as failure:
            raise rpc.error_of(failure, entity) from None
        finally:
            call.cancel()

    async def append(
        self,
        entity: Entity,
        parent: str | None,
        events: Sequence[NewEvent],
        *,
        timers: Sequence[Timer] = (),
        checkpoint: Checkpoint | None = None,
        epoch: int | None = None,
    ) -> list[Event]:
        refuse_oversized(entity, events)
        request = pb.AppendRequest(
            entity=rpc.entity_out(entity),
            parent=parent,
            events=[rpc.new_out(event) for event in events],
            timers=[rpc.timer_out(timer) for timer in timers],
            checkpoint=rpc.checkpoint_out(checkpoint) if checkpoint is not None else None,
            epoch=epoch,
        )
        response = await self._call("Append", request, entity)
        return [rpc.event_in(event) for event in response.events]

    async def read(
        self, entity: Entity, after: str | None = None, *, watch: bool = False
    ) -> AsyncIterator[Event | WillBlock]:
        request = pb.WatchRequest(entity=rpc.entity_out(entity), after=after, watch=watch)
        async for message in self._stream("Watch", request, entity):
            if message.will_block:
                yield WillBlock(message.tail if message.HasField("tail") else None)
            else:
                yield rpc.event_in(message.event)

    async def read_all(self, after_seq: int = 0, *, limit: int = 1000) -> AsyncIterator[Event]:
        async for event in self._stream("ReadAll", pb.ReadAllRequest(after_seq=after_seq)):
            yield rpc.event_in(event)

    async def signals(self, after_seq: int | None = None) -> AsyncIterator[Signal | Subscribed]:
        request = pb.SignalsRequest(after_seq=after_seq)
        async for message in self._stream("Signals", request):
            if message.subscribed:
                yield Subscribed(message.seq)
            else:
                yield Signal(rpc.entity_in(message.entity), message.head, message.seq)

    async def _query(self, request: pb.QueryRequest, entity: Entity | None = None) -> list[Any]:
        return list((await self._call("Query", request, entity)).rows)

    async def head(self, entity: Entity) -> Head | None:
        rows = await self._query(pb.QueryRequest(head=rpc.entity_out(entity)), entity)
        return Head(rows[0].text, rows[0].seq) if rows else None

    async def last_seq(self) -> int:
        return int((await self._query(pb.QueryRequest(last_seq=True)))[0].seq)

    async def entities(self, kind: str, prefix: str = "") -> list[tuple[Entity, Head]]:
        wanted = pb.QueryRequest.Entities(kind=kind, prefix=prefix)
        rows = await self._query(pb.QueryRequest(entities=wanted))
        return [(rpc.entity_in(row.entity), Head(row.text, row.seq)) for row in rows]

    async def changed(self, after_seq: int) -> list[Signal]:
        rows = await self._query(pb.QueryRequest(changed=after_seq))
        return [Signal(rpc.entity_in(row.entity), row.text, row.seq) for row in rows]

    async def due_timers(self, until: float, *, limit: int = 1000) -> list[DueTimer]:
        wanted = pb.QueryRequest.DueTimers(until=until, limit=limit)
        rows = await self._query(pb.QueryRequest(due_timers=wanted))
        return [DueTimer(rpc.entity_in(row.entity), row.text, row.time) for row in rows]

    async def next_timer(self, after: float | None = None) -> float | None:
        wanted = pb.QueryRequest.NextTimer(after=after)
        rows = await self._query(pb.QueryRequest(next_timer=wanted))
        return float(rows[0].time) if rows else None

    async def checkpoints(self, activity: str) -> dict[Entity, Checkpoint]:
        rows = await self._query(pb.QueryRequest(checkpoints=activity))
        return {rpc.entity_in(row.entity): rpc.checkpoint_in(row.checkpoint) for row in rows}

    async def standing(self, activity: str, kind: str) -> AsyncIterator[Sequence[Standing]]:
        saved = {e: c for e, c in (await self.checkpoints(activity)).items() if e.kind == kind}
        page: list[Standing] = []
        for entity, head in await self.entities(kind):
            known = saved.pop(entity, None)
            page.append(
                (entity.id, head.id, *((known.tail, known.state) if known else (None, None)))
            )
        page += [(entity.id, None, known.tail, known.state) for entity, known in saved.items()]
        yield page

    async def trim(self, entity: Entity, keep_from: str) -> int:
        request = pb.TrimRequest(entity=rpc.entity_out(entity), keep_from=keep_from)
        return int((await self._call("Trim", request, entity)).count)

    async def close(self) -> None:
        await self.shutdown()
