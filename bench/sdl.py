"""Reading SDL.

``value``: microseconds to convert a file of two services to groups, manifest and hash. ``peer``:
PyYAML's CSafeLoader reading the same file and nothing more.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import yaml

from bench.harness import result
from bench.manifest import SDL
from leasehold.model import sdl


def run(quick: bool) -> dict[str, Any]:
    rounds, each = (5, 100) if quick else (15, 400)

    def convert() -> None:
        loaded = sdl.load(SDL)
        loaded.groups()
        _ = loaded.hash

    def peer() -> None:
        yaml.load(SDL, Loader=yaml.CSafeLoader)

    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(_microseconds(convert, each))
        theirs.append(_microseconds(peer, each))
    value, peer_value = statistics.median(ours), statistics.median(theirs)
    return result(
        "sdl",
        value,
        "us",
        peer="PyYAML CSafeLoader of the file alone",
        peer_value=peer_value,
        higher_is_better=False,
        aim="ratio <= 5",
        per_second=round(1e6 / value),
        file_bytes=len(SDL),
    )


def _microseconds(action: Callable[[], object], times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        action()
    return (time.perf_counter() - began) / times * 1e6
