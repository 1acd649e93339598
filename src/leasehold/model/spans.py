"""The trace of a lease: spans from its order to its first byte, out of the events that happened.

Ids are derived, not drawn: a lease's trace id is a hash of the lease's id, so whoever knows a lease
knows its trace, in whatever process; a span's id is a hash of the trace and of the event that ended
it, so a span told twice is the same span. The first episode of a lease begins with its order; each
later manifest is an episode of its own in the same trace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from leasehold.model.market import LeaseId


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """What an event says to a trace: ``at`` UTC seconds, ``took`` seconds where it says so."""

    type: str
    at: float
    event: str
    took: float = 0.0
    attributes: dict[str, str | int | float | bool] = {}


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """``start`` and ``end`` are UTC seconds; ``parent`` is 0 for the root of an episode; ``error``
    says what went wrong, empty when nothing did."""

    name: str
    trace: int
    id: int
    parent: int
    start: float
    end: float
    attributes: dict[str, str | int | float | bool] = {}
    error: str = ""


NAMES = {
    "bid.created": "bid",
    "lease.created": "accept",
    "lease.won": "lease",
    "manifest.received": "manifest",
    "deploy.image_pulled": "image",
    "deploy.volume_ready": "volume",
    "deploy.started": "run",
    "deploy.healthy": "first byte",
    "deploy.failed": "failed",
}
"""The span that ends with an event. An image or a volume says itself how long it took; what else
ends then began when the one before it had ended."""

ENDS = ("deploy.healthy", "lease.closed")
"""Events after which an episode is over, beside a final ``deploy.failed``."""

_BESIDE = ("deploy.image_pulled", "deploy.volume_ready")


def trace_id(lease: LeaseId) -> int:
    """128 bits, the same wherever it is asked."""
    return _hashed(f"leasehold lease {lease}", 16)


def span_id(trace: int, event: str, name: str) -> int:
    return _hashed(f"{trace:032x} {event} {name}", 8)


def over(mark: Mark) -> bool:
    """Whether an episode ends with ``mark``."""
    return mark.type in ENDS or (mark.type == "deploy.failed" and bool(mark.attributes["final"]))


def spans(lease: LeaseId, marks: Sequence[Mark], name: str = "order") -> list[Span]:
    """The spans of one episode, root first; ``marks`` in the order they were noted, which need not
    be that of the path: a tenant's manifest may come before the news of the lease. ``name`` is the
    root's."""
    trace = trace_id(lease)
    first, last = marks[0], marks[-1]
    root = span_id(trace, first.event, "episode")
    fault = _fault(last)
    found = [
        Span(
            name=name, trace=trace, id=root, parent=0, start=first.at, end=last.at, error=fault,
            attributes={
                "leasehold.lease": str(lease),
                "leasehold.owner": lease.owner,
                "leasehold.provider": lease.provider,
            },
        )
    ]  # fmt: skip
    began = first.at
    for mark in marks:
        step = NAMES.get(mark.type)
        if step is None:
            continue
        own = mark.at - mark.took if mark.type in _BESIDE else min(began, mark.at)
        found.append(
            Span(
                name=step, trace=trace, id=span_id(trace, mark.event, step), parent=root,
                start=own, end=mark.at, attributes=mark.attributes, error=_fault(mark),
            )
        )  # fmt: skip
        began = max(began, mark.at)
    return found


def _fault(mark: Mark) -> str:
    if mark.type == "deploy.failed":
        return str(mark.attributes.get("message") or "failed")
    return "closed before it answered" if mark.type == "lease.closed" else ""


def _hashed(text: str, size: int) -> int:
    digest = hashlib.sha256(text.encode()).digest()[:size]
    return int.from_bytes(digest, "big") or 1  # zero means "none" in every tracing system
