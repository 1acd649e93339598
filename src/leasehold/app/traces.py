"""Traces for OpenTelemetry, off by default: each lease's way from order to first byte as spans.

The log has every step with its time already, so nothing on the way is instrumented: an activity on
the lease folds its events and, when an episode is over, hands the spans on. What was told is in the
activity's checkpoint; told twice after a crash, spans have the same ids. Spans leave by OTLP over
HTTP from a thread with a bounded queue: a collector that is slow or away costs spans, never a
lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgspec

from leasehold.app.settings import TraceSettings
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.service import Service
from leasehold.events.event import Entity, Event
from leasehold.model.market import LeaseId
from leasehold.model.spans import NAMES, Mark, Span, over, spans
from leasehold.observe.activity import Context, Outcome, Reconciler
from leasehold.observe.engine import Engine

RECENT = 3600.0
"""Seconds: an episode that ended longer ago is not told. It is history, from before traces were
turned on."""

MARKS = 200
"""Most steps of an episode that are kept: a deployment that fails again and again has more."""

SEND_EVERY_MS = 1000
BATCH = 512
"""Spans sent at once, at most."""

_SHOWN = ("service", "volume", "reference", "digest", "bytes", "replica", "hash", "code", "final")


Export = Callable[[Sequence[Span]], None]
"""Takes finished spans; must not block."""


class LeaseTrace(Reconciler):
    """Collects one lease's steps and tells each episode once."""

    name: ClassVar[str] = "trace"
    entity_kind: ClassVar[str] = "lease"

    def __init__(self, context: Context, export: Export, provider: str) -> None:
        super().__init__(context)
        self.export = export
        self.lease = LeaseId.parse(context.entity.id)
        self.own = self.lease.provider == provider
        self.marks: list[Mark] = []
        self.ended: list[tuple[str, list[Mark]]] = []
        self.episodes = 0
        self.told = False

    def fold(self, event: Event) -> None:
        if self.told and event.type != "manifest.received":
            return
        if event.type not in NAMES and event.type != "lease.closed":
            return
        mark = _mark(event)
        if len(self.marks) < MARKS or over(mark):
            self.marks.append(mark)
        self.told = False
        if over(mark):
            self.ended.append(("update" if self.episodes else "order", self.marks))
            self.episodes += 1
            self.marks, self.told = [], True

    def save(self) -> bytes:
        return msgspec.json.encode((self.marks, self.told, self.episodes))

    def restore(self, state: bytes) -> None:
        self.marks, self.told, self.episodes = msgspec.json.decode(
            state, type=tuple[list[Mark], bool, int]
        )

    async def settle(self) -> Outcome:
        if not self.own:
            return Outcome.DONE
        for name, marks in self.ended:
            if marks[-1].at > self.context.clock.now() - RECENT:
                before = await self._order() if name == "order" else []
                self.export(spans(self.lease, before + marks, name))
        self.ended.clear()
        return Outcome.SLEEP

    async def _order(self) -> list[Mark]:
        """The steps before the lease: the order, and the bid that won."""
        found = []
        async for event in self.context.log.read(Entity("order", str(self.lease.order))):
            if not isinstance(event, Event):
                break
            mine = event.type == "bid.created" and event.payload.id == self.lease
            if event.type == "order.created" or mine:
                found.append(_mark(event))
        return found


def _mark(event: Event) -> Mark:
    told: dict[str, Any] = msgspec.json.decode(event.data)
    attributes = {f"leasehold.{name}": told[name] for name in _SHOWN if name in told}
    if event.type == "deploy.failed":
        attributes |= {"final": bool(told.get("final")), "message": str(told.get("message", ""))}
    return Mark(event.type, event.at, event.id, float(told.get("seconds", 0.0)), attributes)


class Traces(Service):
    """Tells every lease of ``provider`` to the collector of the settings. Make it before the engine
    starts."""

    def __init__(self, engine: Engine, provider: str, settings: TraceSettings) -> None:
        super().__init__("traces", clock=engine.clock)
        self.provider = provider
        self._processor = _processor(settings)
        self._resource = _resource(provider)
        engine.register(lambda c: LeaseTrace(c, self.export, provider), kind=LeaseTrace)

    async def stop(self) -> None:
        await asyncio.to_thread(self._processor.shutdown)

    def export(self, finished: Sequence[Span]) -> None:
        """Put spans into the queue."""
        for span in finished:
            self._processor.on_end(readable(span, self._resource))


def _processor(settings: TraceSettings) -> Any:
    """The SDK's queue and exporter; ``traces_unavailable`` when the package is missing."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise LeaseholdError(
            "traces_unavailable",
            f"traces need the OpenTelemetry SDK ({error}); install leasehold[traces]"
            " or empty traces.endpoint",
            kind=Kind.UNAVAILABLE,
            path="traces.endpoint",
        ) from None
    exporter = OTLPSpanExporter(endpoint=settings.endpoint, timeout=settings.timeout_s)
    return BatchSpanProcessor(
        exporter,
        max_queue_size=settings.queue,
        schedule_delay_millis=SEND_EVERY_MS,
        max_export_batch_size=min(BATCH, settings.queue),
        export_timeout_millis=settings.timeout_s * 1000,
    )


def _resource(provider: str) -> Any:
    from opentelemetry.sdk.resources import Resource

    return Resource.create({"service.name": "leasehold", "service.instance.id": provider})


def readable(span: Span, resource: Any) -> Any:
    """The SDK's form of a finished span."""
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

    def context(id: int) -> SpanContext:
        return SpanContext(span.trace, id, is_remote=False, trace_flags=TraceFlags(1))

    return ReadableSpan(
        span.name,
        context=context(span.id),
        parent=context(span.parent) if span.parent else None,
        resource=resource,
        attributes=span.attributes,
        kind=SpanKind.INTERNAL,
        status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.OK),
        start_time=round(span.start * 1e6) * 1000,
        end_time=round(span.end * 1e6) * 1000,
    )
