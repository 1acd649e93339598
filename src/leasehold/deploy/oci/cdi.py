"""GPUs and other devices, as the Container Device Interface describes them.

A vendor's tool (``nvidia-ctk cdi generate``, say) writes a file to ``/etc/cdi`` or ``/var/run/cdi``
that says, by device name, what a container must be given: device nodes, environment, mounts of the
driver's libraries, hooks. Names are qualified: ``nvidia.com/gpu=0``. The operator lists those that
are offered; each belongs to one replica at a time. (CDI 0.3 to 0.8; of a device node's fields path,
hostPath, type, major, minor, permissions and owner are used.)
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from leasehold.core.errors import Kind, LeaseholdError

FOLDERS = ("/etc/cdi", "/var/run/cdi")
"""Where vendors' tools write to; later ones win."""

SPEC_BYTES = 4 << 20
"""Bytes of the largest file read."""


@dataclass
class Edits:
    """What a container is given."""

    environment: list[str] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    mounts: list[dict[str, Any]] = field(default_factory=list)
    hooks: list[dict[str, Any]] = field(default_factory=list)

    def add(self, edits: dict[str, Any]) -> None:
        for ours, theirs in (
            (self.environment, "env"),
            (self.nodes, "deviceNodes"),
            (self.mounts, "mounts"),
            (self.hooks, "hooks"),
        ):
            mine: list[Any] = ours
            mine += [item for item in edits.get(theirs) or () if item not in mine]

    @property
    def places(self) -> tuple[list[str], list[str]]:
        """``(directories, files)`` that must be there to mount on."""
        folders: list[str] = []
        files: list[str] = []
        for mount in self.mounts:
            (folders if os.path.isdir(mount["hostPath"]) else files).append(mount["containerPath"])
        return folders, files

    def apply(self, config: dict[str, Any]) -> None:
        """Write them into an OCI configuration."""
        config["process"]["env"] = [*config["process"]["env"], *self.environment]
        linux = config["linux"]
        allowed = linux["resources"].setdefault("devices", [])
        for node in self.nodes:
            device = _device(node)
            linux.setdefault("devices", []).append(device)
            access = node.get("permissions", "rwm")
            allowed.append(
                {"allow": True, "access": access}
                | {key: device[key] for key in ("type", "major", "minor")}
            )
        for mount in self.mounts:
            config["mounts"].append(
                {
                    "destination": mount["containerPath"],
                    "type": mount.get("type", "bind"),
                    "source": mount["hostPath"],
                    "options": mount.get("options") or ["ro", "nosuid", "nodev", "bind"],
                }
            )
        for hook in self.hooks:
            kept = {k: hook[k] for k in ("path", "args", "env", "timeout") if k in hook}
            config.setdefault("hooks", {}).setdefault(hook["hookName"], []).append(kept)


class Pool:
    """The devices offered. Who has one is known from the labels of what runs; between choosing and
    running a device is :meth:`take`-n here."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._taken: dict[str, list[str]] = {}

    def take(self, key: str, wanted: int, busy: Iterable[str]) -> list[str]:
        """Devices for the replica ``key``, until :meth:`told`; LeaseholdError when too few are."""
        if not wanted:
            return []
        used = {*busy, *(name for names in self._taken.values() for name in names)}
        free = [name for name in self.names if name not in used]
        if len(free) < wanted:
            offered = len(self.names)
            raise LeaseholdError(
                "no_gpu",
                "every GPU of this machine is in use"
                if offered >= wanted
                else f"this machine offers {offered or 'no'} GPUs to containers",
                kind=Kind.UNAVAILABLE if offered >= wanted else Kind.UNSUPPORTED,
                expected=f"up to {len(free)}",
                got=wanted,
            )
        self._taken[key] = free[:wanted]
        return free[:wanted]

    def told(self, key: str) -> None:
        """The replica runs, with labels of its own, or will not."""
        self._taken.pop(key, None)


def find(names: Sequence[str], folders: Iterable[str] = FOLDERS) -> Edits:
    """What a container with the devices ``names`` is given; LeaseholdError for an unknown one."""
    edits, left = Edits(), list(names)
    for spec in _specs(folders):
        kind = spec.get("kind", "")
        mine = {f"{kind}={device['name']}": device for device in spec.get("devices") or ()}
        wanted = [name for name in left if name in mine]
        if not wanted:
            continue
        edits.add(spec.get("containerEdits") or {})
        for name in wanted:
            edits.add(mine[name].get("containerEdits") or {})
            left.remove(name)
    if left:
        raise LeaseholdError(
            "device_unknown",
            f"no CDI file describes {', '.join(left)}; generate one with the vendor's tool",
            kind=Kind.UNSUPPORTED,
            path="deploy.gpus",
            expected=f"described in {' or '.join(folders)}",
            got=left,
        )
    return edits


def _specs(folders: Iterable[str]) -> list[dict[str, Any]]:
    """The last folder's first: its devices win."""
    found = []
    for folder in reversed(tuple(folders)):
        for path in sorted(Path(folder).glob("*")):
            if path.suffix not in (".json", ".yaml", ".yml"):
                continue
            try:
                if path.stat().st_size > SPEC_BYTES:
                    raise ValueError(f"over {SPEC_BYTES} bytes")
                text = path.read_text()
                read = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
                if not isinstance(read, dict):
                    raise ValueError("not a mapping")
            except (OSError, ValueError, yaml.YAMLError) as error:
                raise LeaseholdError(
                    "bad_cdi_file", f"{path} cannot be read: {error}", path=str(path)
                ) from None
            found.append(read)
    return found


def _device(node: dict[str, Any]) -> dict[str, Any]:
    """An OCI device; what the file leaves out is taken from the host's node."""
    host = node.get("hostPath", node["path"])
    try:
        there = os.stat(host)
    except OSError as error:
        raise LeaseholdError(
            "device_missing",
            f"the device {host} is not there: {error.strerror}",
            kind=Kind.UNAVAILABLE,
            got=host,
        ) from None
    made = {
        "path": node["path"],
        "type": node.get("type", "b" if stat.S_ISBLK(there.st_mode) else "c"),
        "major": node.get("major", os.major(there.st_rdev)),
        "minor": node.get("minor", os.minor(there.st_rdev)),
        "fileMode": node.get("fileMode", stat.S_IMODE(there.st_mode)),
    }
    return made | {key: node[key] for key in ("uid", "gid") if key in node}
