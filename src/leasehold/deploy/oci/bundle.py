"""``config.json`` of a replica: what the kernel lets it see and use.

Namespaces of its own for processes, mounts, host name, IPC, users and control groups; its network
namespace is given. No new privileges, the system calls of :mod:`.seccomp`, a short list of
capabilities that mean nothing outside its user namespace, masked kernel files, and limits that the
runtime writes for control groups v1 and v2 alike.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass, field
from typing import Any

from leasehold.deploy.oci import seccomp
from leasehold.deploy.oci.image import User

CPU_PERIOD = 100_000
"""Microseconds of one accounting period; the kernel's default."""

LEAST_MEMORY = 16 << 20
"""Bytes; below this the runtime itself does not get a container started."""

CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
    "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID",
)  # fmt: skip
"""What images that start as root and become another user need. They hold inside the replica's own
user namespace only: towards the host the replica has none."""

NOFILE = 65_536
"""Open files of a replica, clamped to the hard limit the provider itself has."""

_MASKED = [
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
]  # fmt: skip
_READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


@dataclass(frozen=True, slots=True)
class Mount:
    """``source`` on the host (None: memory of ``size`` bytes) at ``target`` in the replica."""

    target: str
    source: str | None = None
    readonly: bool = False
    size: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """Thousandths of a core, bytes, processes."""

    cpu_milli: int
    memory_bytes: int
    pids: int = 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything ``config.json`` depends on."""

    rootfs: str
    netns: str
    cgroup: str
    hostname: str
    args: list[str]
    env: list[str]
    limits: Limits
    user: User = field(default_factory=User)
    cwd: str = "/"
    mounts: tuple[Mount, ...] = ()
    idmap: tuple[int, int] | None = None
    capabilities: tuple[str, ...] = CAPABILITIES
    readonly_rootfs: bool = False
    terminal: bool = False
    devices: tuple[dict[str, Any], ...] = ()
    annotations: dict[str, str] = field(default_factory=dict)


def config(plan: Plan) -> dict[str, Any]:
    """The OCI runtime configuration, version 1.0.2."""
    namespaces = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "cgroup")]
    namespaces.append({"type": "network", "path": plan.netns})
    linux: dict[str, Any] = {
        "namespaces": namespaces,
        "cgroupsPath": plan.cgroup,
        "resources": _resources(plan.limits),
        "maskedPaths": _MASKED,
        "readonlyPaths": _READONLY,
    }
    if plan.idmap is not None:
        base, size = plan.idmap
        namespaces.append({"type": "user"})
        mapping = [{"containerID": 0, "hostID": base, "size": size}]
        linux["uidMappings"] = linux["gidMappings"] = mapping
    filters = seccomp.profile()
    if filters is not None:
        linux["seccomp"] = filters
    return {
        "ociVersion": "1.0.2",
        "process": process(plan),
        "root": {"path": plan.rootfs, "readonly": plan.readonly_rootfs},
        "hostname": plan.hostname,
        "mounts": [*_system_mounts(plan), *map(_mount, plan.mounts)],
        "linux": linux,
        "annotations": plan.annotations,
    }


def process(plan: Plan, args: list[str] | None = None) -> dict[str, Any]:
    """The OCI process object: the replica's own, or one that is executed beside it."""
    capabilities = list(plan.capabilities)
    return {
        "terminal": plan.terminal,
        "user": {
            "uid": plan.user.uid,
            "gid": plan.user.gid,
            "additionalGids": list(plan.user.groups),
        },
        "args": args or plan.args,
        "env": plan.env,
        "cwd": plan.cwd or "/",
        "noNewPrivileges": True,
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": clamp(resource.RLIMIT_NOFILE, NOFILE),
             "hard": clamp(resource.RLIMIT_NOFILE, NOFILE)},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ],
    }  # fmt: skip


def clamp(limit: int, wanted: int) -> int:
    """``wanted``, or our own hard limit where that is lower: raising it takes a capability that
    root in a virtual machine may lack."""
    hard = resource.getrlimit(limit)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def _resources(limits: Limits) -> dict[str, Any]:
    memory = max(limits.memory_bytes, LEAST_MEMORY)
    return {
        "cpu": {
            "quota": max(1000, limits.cpu_milli * CPU_PERIOD // 1000),
            "period": CPU_PERIOD,
            "shares": max(2, limits.cpu_milli * 1024 // 1000),
        },
        "memory": {"limit": memory},
        "pids": {"limit": limits.pids},
        "devices": [{"allow": False, "access": "rwm"}],
    }


def _system_mounts(plan: Plan) -> list[dict[str, Any]]:
    quiet = ["nosuid", "noexec", "nodev"]
    shared = min(64 << 20, max(plan.limits.memory_bytes // 2, 1 << 20))
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": quiet},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": [*quiet, "mode=1777", f"size={shared}"],
        },
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": quiet},
        # Not the host's sysfs: it shows the host's devices and network. What programs size
        # themselves by is there: the processors, and the replica's own control group.
        {
            "destination": "/sys",
            "type": "tmpfs",
            "source": "sys",
            "options": [*quiet, "mode=755", "size=64k"],
        },
        {
            "destination": "/sys/devices/system/cpu",
            "type": "bind",
            "source": "/sys/devices/system/cpu",
            "options": ["bind", "ro", *quiet],
        },
        {
            "destination": "/sys/fs/cgroup",
            "type": "cgroup",
            "source": "cgroup",
            "options": [*quiet, "relatime", "ro"],
        },
    ]


def _mount(mount: Mount) -> dict[str, Any]:
    if mount.source is None:
        return {
            "destination": mount.target,
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "nodev", "mode=1777", f"size={mount.size}"],
        }
    return {
        "destination": mount.target,
        "type": "bind",
        "source": mount.source,
        "options": ["bind", "nosuid", "nodev", "ro" if mount.readonly else "rw"],
    }
