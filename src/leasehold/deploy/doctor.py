"""What this machine lacks for running workloads: every check at once, each with what to do."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import msgspec

from leasehold.core.errors import Kind, LeaseholdError, Violation
from leasehold.deploy.keeper import userns
from leasehold.deploy.net.nft import LIBRARY
from leasehold.deploy.oci import cgroups, disk
from leasehold.deploy.oci.program import choose
from leasehold.deploy.programs import find_program
from leasehold.deploy.settings import DeploySettings

KERNEL = (5, 12)
"""First kernel with id-mapped mounts (on ext4; overlay over them and tmpfs came by 6.3)."""


class Check(msgspec.Struct, frozen=True):
    """``level``: ok, warning (works with less) or error (workloads cannot run). ``fix`` says what
    to do, empty when nothing is wrong."""

    name: str
    level: str
    detail: str
    fix: str = ""


def doctor(settings: DeploySettings | None = None, folder: Path | None = None) -> list[Check]:
    """All checks. Changes nothing on the machine."""
    settings = settings or DeploySettings()
    if settings.driver == "kubernetes":
        # Its client is only loaded where it is used.
        from leasehold.deploy.kubernetes.doctor import doctor as examine

        return examine(settings)
    return list(_checks(settings, folder or Path("/var/lib")))


def require(settings: DeploySettings) -> None:
    """Refuse to start where workloads could not run, naming everything that is missing.

    Disk and ports are not asked: a provider that comes back must take its workloads over, and they
    are what fills the one and holds the other. LeaseholdError ``machine_not_ready``.
    """
    lacking = [check for check in _needed(settings) if check.level == "error"]
    if lacking:
        raise LeaseholdError.of(
            [
                Violation("machine_not_ready", f"{check.detail}; {check.fix}", path=check.name)
                for check in lacking
            ],
            kind=Kind.UNAVAILABLE,
        )


def _checks(settings: DeploySettings, folder: Path) -> Iterator[Check]:
    yield from _needed(settings)
    yield _overlay()
    if settings.disk_limits:
        yield _disk()
    yield _sessions()
    yield _space(folder)
    yield _ports(settings)


def _needed(settings: DeploySettings) -> Iterator[Check]:
    """What no setting and no waiting makes up for."""
    yield _root(settings)
    yield _runtime(settings)
    yield _program("haproxy", "HTTP ingress", "haproxy")
    if settings.runtime == "process":
        return
    yield _nftables()
    yield _cgroups()
    if settings.user_namespace:
        yield _kernel()
        if os.geteuid() == 0:
            yield _user_namespaces(settings)


def _root(settings: DeploySettings) -> Check:
    if os.geteuid() == 0:
        return Check("root", "ok", "running as root")
    if settings.runtime == "process":
        return Check("root", "warning", f"running as uid {os.geteuid()}: no limits are enforced")
    return Check(
        "root",
        "error",
        f"running as uid {os.geteuid()}; containers, their networks and mounts need root",
        'run as root, or set deploy.runtime = "process" for development without isolation',
    )


def _runtime(settings: DeploySettings) -> Check:
    if settings.runtime == "process":
        return Check(
            "container runtime",
            "warning",
            "runtime is process: workloads run as plain processes, with NO isolation",
            'use deploy.runtime = "auto" for anything but development',
        )
    try:
        name, program = choose(settings.runtime)
    except LeaseholdError as error:
        return Check("container runtime", "error", error.message, "apt-get install crun")
    if name == "runc" and settings.user_namespace:
        return Check(
            "container runtime",
            "warning",
            f"{name} ({program}): no shell into workloads, image health checks are not run "
            "(TCP is asked instead)",
            "apt-get install crun",
        )
    return Check("container runtime", "ok", f"{name} ({program})")


def _program(name: str, what: str, package: str) -> Check:
    found = find_program(name)
    if found:
        return Check(name, "ok", found)
    return Check(name, "error", f"{what} needs {name}", f"apt-get install {package}")


def _nftables() -> Check:
    import ctypes

    try:
        ctypes.CDLL(LIBRARY)
        return Check("nftables", "ok", LIBRARY)
    except OSError:
        pass
    if find_program("nft"):
        return Check(
            "nftables",
            "warning",
            "the nft program is used; rules take 10 ms instead of 1",
            "apt-get install libnftables1",
        )
    return Check(
        "nftables", "error", "the network of leases needs nftables", "apt-get install libnftables1"
    )


def _cgroups() -> Check:
    mode = cgroups.mode()
    if mode == "none":
        return Check(
            "control groups",
            "error",
            "no memory controller is mounted: workloads would have no limits",
            "mount cgroup2 on /sys/fs/cgroup",
        )
    detail = {
        "v2": "version 2",
        "v1": "version 1",
        "hybrid": "version 1 with version 2 beside it, which the keeper hides from crun",
    }[mode]
    if mode == "v2":
        controllers = (cgroups.ROOT / "cgroup.controllers").read_text().split()
        missing = {"cpu", "memory", "pids"} - set(controllers)
        if missing:
            return Check(
                "control groups",
                "error",
                f"controllers not available: {', '.join(sorted(missing))}",
                "enable them for this control group",
            )
    return Check("control groups", "ok", detail)


def _kernel() -> Check:
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    if numbers >= KERNEL:
        return Check("kernel", "ok", release)
    wanted = ".".join(map(str, KERNEL))
    return Check(
        "kernel",
        "error",
        f"{release} has no id-mapped mounts (from {wanted} on)",
        "upgrade the kernel, or set deploy.user_namespace = false (weaker isolation)",
    )


def _user_namespaces(settings: DeploySettings) -> Check:
    try:
        os.close(userns.open_userns(settings.id_base, settings.id_count))
    except OSError as error:
        return Check(
            "user namespaces",
            "error",
            f"cannot be made: {error}",
            "sysctl user.max_user_namespaces=10000, or deploy.user_namespace = false "
            "(weaker isolation)",
        )
    first, last = settings.id_base, settings.id_base + settings.id_count - 1
    return Check("user namespaces", "ok", f"ids {first}-{last} belong to containers")


def _overlay() -> Check:
    try:
        known = Path("/proc/filesystems").read_text()
    except OSError:
        known = ""
    if "overlay" in known:
        return Check("overlay", "ok", "in the kernel")
    return Check("overlay", "warning", "not loaded yet", "modprobe overlay")


def _disk() -> Check:
    if disk.available():
        return Check("disk limits", "ok", "loop devices and mkfs.ext4")
    return Check(
        "disk limits",
        "warning",
        "without loop devices or mkfs.ext4 a workload can fill the whole disk",
        "modprobe loop; apt-get install e2fsprogs",
    )


def _sessions() -> Check:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= 4096:
        return Check("open files", "ok", f"limit {hard}")
    return Check(
        "open files", "warning", f"limit {hard} is low for many workloads", "ulimit -n 65536"
    )


def _space(folder: Path) -> Check:
    while not folder.exists():
        folder = folder.parent
    stats = os.statvfs(folder)
    free = stats.f_bavail * stats.f_frsize
    text = f"{free >> 30} GiB free below {folder}"
    if free < 1 << 30:
        return Check("disk space", "error", text, "free some, or move the state folder")
    return Check("disk space", "warning" if free < 10 << 30 else "ok", text)


def _ports(settings: DeploySettings) -> Check:
    import socket

    taken = []
    for port in settings.ingress_ports:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((settings.ingress_address, port))
                return Check("ingress port", "ok", f"{port or 'any'} is free")
            except OSError as error:
                taken.append(f"{port} ({error.strerror})")
    return Check(
        "ingress port",
        "warning",
        "none can be had now: " + ", ".join(taken) + " (a running provider holds its own)",
        "change deploy.ingress_ports",
    )
