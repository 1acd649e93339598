"""Control groups, v1 and v2: where a replica's are, what they have used, and removing them.

The runtime makes the groups and writes the limits; this only reads and removes. All groups of the
node are below one parent, all of a lease below one more, so a lease's usage is one directory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a group has used: CPU seconds since it was made, bytes of memory now, processes now."""

    cpu_seconds: float = 0.0
    memory_bytes: int = 0
    pids: int = 0
    oom_kills: int = 0
    throttled_seconds: float = 0.0


def mode(root: Path = ROOT) -> str:
    """``v2``, ``v1``, ``hybrid`` (v1 with an extra v2 mount) or ``none``."""
    if (root / "cgroup.controllers").exists():
        return "v2"
    if not (root / "memory").is_dir():
        return "none"
    return "hybrid" if (root / "unified" / "cgroup.procs").exists() else "v1"


def usage(path: str, root: Path = ROOT) -> Usage | None:
    """What the group ``path`` has used; None when there is no such group."""
    relative = path.lstrip("/")
    if mode(root) == "v2":
        group = root / relative
        if not group.is_dir():
            return None
        cpu = _pairs(group / "cpu.stat")
        return Usage(
            cpu.get("usage_usec", 0) / 1e6,
            _number(group / "memory.current"),
            _number(group / "pids.current"),
            _pairs(group / "memory.events").get("oom_kill", 0),
            cpu.get("throttled_usec", 0) / 1e6,
        )
    memory = root / "memory" / relative
    if not memory.is_dir():
        return None
    return Usage(
        _number(root / "cpuacct" / relative / "cpuacct.usage") / 1e9,
        _number(memory / "memory.usage_in_bytes"),
        _number(root / "pids" / relative / "pids.current"),
        _pairs(memory / "memory.oom_control").get("oom_kill", 0),
        _pairs(root / "cpu" / relative / "cpu.stat").get("throttled_time", 0) / 1e9,
    )


def remove(path: str, root: Path = ROOT) -> bool:
    """Remove the group and those below it from every hierarchy; False when something is left.

    A group with processes stays: it is removed after they are gone.
    """
    left = False
    for group in hierarchies(path, root):
        for folder, _, _ in os.walk(group, topdown=False):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                pass
            except OSError:
                left = True
    return not left


def hierarchies(path: str, root: Path = ROOT) -> Iterator[Path]:
    """The directories of the group ``path``, one a hierarchy."""
    relative = path.strip("/")
    if not relative:
        raise ValueError("the root group is not ours")
    if mode(root) == "v2":
        candidates = [root / relative]
    else:
        with contextlib.suppress(FileNotFoundError):
            candidates = [hierarchy / relative for hierarchy in root.iterdir()]
    yield from (group for group in candidates if group.is_dir())


def _number(path: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return 0


def _pairs(path: Path) -> dict[str, int]:
    found = {}
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if value.isdigit():
                found[key] = int(value)
    return found
