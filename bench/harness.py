"""How things are measured here.

Ours and the peer run in turn, ours, peer, ours, peer …, so that a machine that drifts treats both
alike; the median of the runs is quoted. A peer that cannot run is said so, never invented.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Awaitable, Callable
from typing import Any


def machine() -> dict[str, Any]:
    """What was measured on."""
    return {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "arch": platform.machine(),
    }


def percentile(values: list[float], share: float) -> float:
    """The value below which ``share`` (0 to 1) of ``values`` lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def interleaved(runs: int, *measures: Callable[[], Awaitable[float]]) -> list[list[float]]:
    """Run the measures in turn ``runs`` times; one list of values per measure."""
    values: list[list[float]] = [[] for _ in measures]
    for _ in range(runs):
        for index, measure in enumerate(measures):
            values[index].append(await measure())
    return values


def result(
    bench: str,
    value: float,
    unit: str,
    *,
    peer: str = "",
    peer_value: float | None = None,
    higher_is_better: bool,
    aim: str = "",
    **extras: Any,
) -> dict[str, Any]:
    """The JSON line of a bench; ``ratio`` is always value / peer_value."""
    line: dict[str, Any] = {
        "bench": bench,
        "value": round(value, 6),
        "unit": unit,
        "peer": peer or None,
        "peer_value": None if peer_value is None else round(peer_value, 6),
        "ratio": round(value / peer_value, 4) if peer_value else None,
        "higher_is_better": higher_is_better,
        "aim": aim,
    }
    return {**line, **extras, "machine": machine()}


def median(values: list[float]) -> float:
    return statistics.median(values)
