"""The Prometheus registry of this process.

Metrics are made once per name; asking again for the same name returns the same metric, so that
two instances of a part in one process (as in tests) share it. Names start with ``leasehold_``
unless they keep an original's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

REGISTRY = CollectorRegistry(auto_describe=True)

LATENCY_BUCKETS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
"""Seconds; from a wake-up in process to a slow image pull."""

_made: dict[str, MetricWrapperBase] = {}
M = TypeVar("M", bound=MetricWrapperBase)


def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
    """A count that only grows."""
    return _once(Counter, name, lambda: Counter(name, text, labels, registry=REGISTRY))


def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
    """A value that goes up and down."""
    return _once(Gauge, name, lambda: Gauge(name, text, labels, registry=REGISTRY))


def histogram(
    name: str,
    text: str,
    labels: Sequence[str] = (),
    buckets: Sequence[float] = LATENCY_BUCKETS,
) -> Histogram:
    """A distribution; seconds unless the name says otherwise."""
    return _once(
        Histogram, name, lambda: Histogram(name, text, labels, registry=REGISTRY, buckets=buckets)
    )


def _once(kind: type[M], name: str, make: Callable[[], M]) -> M:
    found = _made.get(name)
    if found is None:
        found = _made[name] = make()
    if not isinstance(found, kind):
        raise TypeError(f"metric {name} exists as {type(found).__name__}")
    return found
