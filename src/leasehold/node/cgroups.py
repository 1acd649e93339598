"""A control group for each host process: limits, and a way to end all of its descendants.

Standard library only. Works with version 2, version 1 and the hybrid of both; where no hierarchy
is writable there are simply no groups and the callers fall back to sessions and rlimits. Groups
are named ``leasehold-node/<key>/<id>``, with ``key`` telling nodes on one machine apart.

A process that is the runtime of a container makes a second group, ``<id>.box``, for what is inside,
in every hierarchy there is. It lies beside the first, since version 2 allows no limits below a
group that has processes; it is ended and removed with it, whatever became of the runtime.
"""

from __future__ import annotations

import contextlib
import os
import time

PARENT = "leasehold-node"
BOX = ".box"
PERIOD_US = 100_000
"""CFS period in microseconds, the kernel's default."""


class Hierarchies:
    """The writable cgroup mounts of this machine and the groups below ``key``."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.v2: str | None = None
        self.controllers: dict[str, str] = {}
        self.all: list[str] = []
        for mount, kind, options in _mounts():
            if not os.access(mount, os.W_OK):
                continue
            self.all.append(mount)
            if kind == "cgroup2":
                self.v2 = mount
            else:
                for name in ("memory", "cpu", "pids"):
                    if name in options:
                        self.controllers[name] = mount
        self.unified = self.v2 is not None and not self.controllers
        if self.unified and not self._delegate():
            self.v2, self.unified = None, False

    def _delegate(self) -> bool:
        """Make the wanted controllers available below our parent (pure version 2)."""
        try:
            base = self._base(str(self.v2))
            os.makedirs(base, exist_ok=True)
            for level in (str(self.v2), os.path.dirname(base), base):
                for name in ("memory", "cpu", "pids"):
                    with contextlib.suppress(OSError):
                        _write(os.path.join(level, "cgroup.subtree_control"), f"+{name}")
        except OSError:
            return False
        return True

    def _base(self, mount: str) -> str:
        return os.path.join(mount, PARENT, self.key)

    def _mounts_used(self) -> list[str]:
        """Version 2 alone where it has the controllers; else those of version 1, which do for
        ending a group as well."""
        return [str(self.v2)] if self.unified else list(dict.fromkeys(self.controllers.values()))

    def create(self, id: str, *, memory_mb: int, cpu: float, pids: int) -> list[str]:
        """Make the groups of ``id`` with their limits; returns the files to write ``0`` to, which
        puts the writing process into them.

        A limit that cannot be set is left out: a process without a limit is better than none.
        """
        files = []
        for mount in self._mounts_used():
            path = os.path.join(self._base(mount), id)
            try:
                os.makedirs(path, exist_ok=True)
            except OSError:
                continue
            # A thread that moves itself takes no lock of the whole machine (15 ms when it was not
            # taken lately); version 2 moves whole processes only.
            files.append(os.path.join(path, "cgroup.procs" if mount == self.v2 else "tasks"))
            for name, value in self._limits(mount, memory_mb, cpu, pids):
                with contextlib.suppress(OSError):
                    _write(os.path.join(path, name), value)
        return files

    def _limits(self, mount: str, memory_mb: int, cpu: float, pids: int) -> list[tuple[str, str]]:
        out = []
        v2 = mount == self.v2
        if memory_mb and (self.unified or self.controllers.get("memory") == mount):
            out.append(("memory.max" if v2 else "memory.limit_in_bytes", str(memory_mb << 20)))
        if pids and (self.unified or self.controllers.get("pids") == mount):
            out.append(("pids.max", str(pids)))
        if cpu and (self.unified or self.controllers.get("cpu") == mount):
            quota = int(cpu * PERIOD_US)
            if v2:
                out.append(("cpu.max", f"{quota} {PERIOD_US}"))
            else:
                out.append(("cpu.cfs_quota_us", str(quota)))
        return out

    def _groups(self, id: str) -> list[str]:
        """Every directory that is, or may be, a group of ``id``."""
        boxes = [os.path.join(self._base(mount), id + BOX) for mount in self.all]
        return boxes + [os.path.join(self._base(mount), id) for mount in self._mounts_used()]

    def processes(self, id: str) -> set[int]:
        """Every process in a group of ``id``."""
        pids: set[int] = set()
        for path in self._groups(id):
            with contextlib.suppress(OSError):
                with open(os.path.join(path, "cgroup.procs")) as file:
                    pids.update(int(line) for line in file)
        return pids

    def kill(self, id: str) -> None:
        """SIGKILL everything in the groups of ``id``."""
        if self.v2:
            for name in (id, id + BOX):
                with contextlib.suppress(OSError):
                    _write(os.path.join(self._base(self.v2), name, "cgroup.kill"), "1")
        for pid in self.processes(id):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)

    def remove(self, id: str, *, wait: float = 0.5) -> bool:
        """Remove the groups of ``id``; False when a process is still in one after ``wait`` s."""
        deadline = time.monotonic() + wait
        gone = True
        for path in self._groups(id):
            while True:
                try:
                    os.rmdir(path)
                except FileNotFoundError:
                    pass
                except OSError:
                    if time.monotonic() < deadline:
                        # The kernel empties a group a moment after its last process was reaped.
                        time.sleep(0.002)
                        continue
                    gone = False
                break
        return gone

    def ids(self) -> set[str]:
        """Every id that has a group."""
        found: set[str] = set()
        for mount in self.all:
            with contextlib.suppress(OSError):
                with os.scandir(self._base(mount)) as entries:
                    found.update(e.name.removesuffix(BOX) for e in entries if e.is_dir())
        return found

    def remove_all(self) -> None:
        """Remove the (empty) parent of this node's groups."""
        for mount in self.all:
            with contextlib.suppress(OSError):
                os.rmdir(self._base(mount))


def key_of(root: str) -> str:
    """A name for the state folder ``root`` that no other one on this machine has."""
    info = os.stat(root)
    return f"{info.st_dev:x}-{info.st_ino:x}"


def box_of(root: str, id: str) -> str:
    """The group of the container ``id`` of the node in ``root``, as a runtime is told."""
    return f"/{PARENT}/{key_of(root)}/{id}{BOX}"


def _mounts() -> list[tuple[str, str, set[str]]]:
    out = []
    with open("/proc/self/mounts") as lines:
        for line in lines:
            _, mount, kind, options, *_ = line.split()
            if kind in ("cgroup", "cgroup2"):
                out.append((mount.replace("\\040", " "), kind, set(options.split(","))))
    return out


def _write(path: str, value: str) -> None:
    with open(path, "w") as file:
        file.write(value)
