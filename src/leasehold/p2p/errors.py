"""What goes wrong between peers, as the one error type with codes of this area."""

from __future__ import annotations

from leasehold.core import metrics
from leasehold.core.errors import Kind, LeaseholdError

REFUSED = metrics.counter(
    "leasehold_p2p_refused_total",
    "Things peers asked for or did that were refused, by reason.",
    ("reason",),
)


class PeerError(LeaseholdError):
    """A peer, a connection to it or a stream on that failed. Trying elsewhere may help."""

    def __init__(self, code: str, message: str, *, kind: Kind = Kind.UNAVAILABLE) -> None:
        super().__init__(code, message, kind=kind)


class ProtocolViolation(PeerError):
    """A peer broke the rules of a protocol; its connection or stream was ended."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message, kind=Kind.MALFORMED)


def refused(reason: str) -> None:
    """Count one refusal."""
    REFUSED.labels(reason).inc()
