"""``run.json``: what runs from a state folder, for other commands on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec


class Running(msgspec.Struct, kw_only=True):
    """What ``run.json`` says of the running provider."""

    pid: int
    gateway: str
    ledger: str
    ingress: str
    ops: str
    provider: str
    state: str


def write_running(folder: Path, running: Running) -> None:
    """Tell other commands; replaces the file in one step."""
    new = folder / "run.json.new"
    new.write_text(json.dumps(msgspec.to_builtins(running), indent=2) + "\n")
    new.rename(folder / "run.json")
