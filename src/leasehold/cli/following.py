"""Waits for a change of a volume, with a progress bar: the end comes as an event, bytes by looking.

The events after the one that was newest before the command are read, so the end cannot be missed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leasehold.cli.client import Api, operator
from leasehold.cli.progress import Far, showing
from leasehold.core.errors import Kind, LeaseholdError

ENDS = ("repo.moved", "repo.tier_changed")
STEPS = {
    "workflow.move_started": "begun", "workflow.app_accepted": "nothing uses it",
    "workflow.released": "let go of", "workflow.files_moved": "files are there",
}  # fmt: skip


def wanted(wait: bool | None) -> bool:
    """Whether to wait: as told, else when somebody looks."""
    return sys.stdout.isatty() if wait is None else wait


def bytes_done(state: Path | None, volume: str) -> Far | None:
    """How far the work on the files of a volume (its id or path) is; None when there is none."""
    with operator(state) as api:
        found = api.get("/v1/volumes/progress")
        if volume not in found and found:
            rows = api.get("/v1/volumes", prefix=volume)
            volume = next((row["id"] for row in rows if row["path"] == volume), volume)
    far = found.get(volume)
    if far is None:
        return None
    return Far(far["done"], far["total"], f"{far['what']} {_size(far['done'])}")


def follow(api: Api, state: Path | None, done: dict[str, Any], since: int) -> dict[str, Any]:
    """Wait for the end of ``done["workflow"]``, begun after event ``since``; what became of it.

    Raises ``volume_failed`` when the change failed or was given up.
    """
    volume, workflow = done["volume"], done["workflow"]
    if not workflow:
        return done  # there was nothing to do
    step = "asked for"

    def look() -> Far:
        return bytes_done(state, volume) or Far(0, 0, step)

    with showing(look), api.stream("/v1/events/tail", after=since) as lines:
        for event in _of(lines, volume, workflow):
            data = event["data"]
            if event["type"] == "repo.error_set":
                raise _failed(data.get("full") or data["message"])
            if event["type"] in ENDS and data.get("workflow") == workflow:
                if data.get("failed") or data.get("aborted"):
                    raise _failed(data.get("reason") or "it was given up")
                return {**done, "ended": event["type"], **_worth(data)}
            step = STEPS.get(event["type"], step)
    raise LeaseholdError(
        "gateway_unreachable",
        "the provider went away before the change ended; it goes on when it is back",
        kind=Kind.UNAVAILABLE,
    )


def _of(lines: Iterator[str], volume: str, workflow: str) -> Iterator[dict[str, Any]]:
    """The events of the volume and its workflow."""
    for line in lines:
        event = json.loads(line) if line else {}
        if event.get("entity") in (f"repo:{volume}", f"workflow:{workflow}"):
            yield event


def _worth(data: dict[str, Any]) -> dict[str, Any]:
    return {name: data[name] for name in ("path", "host", "tier") if data.get(name)}


def _failed(why: str) -> LeaseholdError:
    return LeaseholdError("volume_failed", f"the volume was not changed: {why}", kind=Kind.CONFLICT)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
