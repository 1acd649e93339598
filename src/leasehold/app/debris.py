"""Looks for what a provider could have left on the machine: nothing is taken on trust."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from leasehold.deploy.net.node import device_of


def find(folder: Path, state: Path | None = None, *, mark: str = "") -> list[str]:
    """Processes, mounts, control groups, links and packet filters that belong to ``folder``.

    ``state`` is the provider's state folder, if not ``folder`` itself. Control groups are looked
    for by their name ``mark``, if it is one that nobody else on this machine has.
    """
    device = device_of((state or folder) / "deploy" / "keeper")
    return [
        *_processes(folder),
        *_mounts(folder),
        *(_control_groups(mark) if mark else ()),
        *_links(device),
        *_packet_filters(device),
    ]


def _processes(folder: Path) -> list[str]:
    found = []
    ours, named = _ancestry(), re.compile(re.escape(str(folder)) + r"(?![^/\s])")
    for process in Path("/proc").glob("[0-9]*"):
        if process.name in ours:
            continue  # `--folder` names them, too
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            where = str((process / "cwd").readlink())
            if named.search(words) or named.match(where):
                found.append(f"process {process.name}: {words.strip()[:80]}")
    return found


def _ancestry() -> set[str]:
    """This process and those that started it: a shell, ``sudo``, ``timeout``."""
    found, pid = set(), str(os.getpid())
    while pid not in ("0", ""):
        found.add(pid)
        try:
            # Behind the name, which may hold anything, are the state and the parent.
            pid = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            break
    return found


def _mounts(folder: Path) -> list[str]:
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [f"mount {point}" for point in points if Path(point).is_relative_to(folder)]


def _control_groups(mark: str) -> list[str]:
    root = Path("/sys/fs/cgroup")
    found = [*root.glob(mark), *root.glob(f"*/{mark}")]
    return [f"control group {path}" for path in found]


def _links(device: str) -> list[str]:
    return [f"link {device}"] if Path("/sys/class/net", device).exists() else []


def _packet_filters(device: str) -> list[str]:
    program = shutil.which("nft")
    if program is None:
        return []
    listed = subprocess.run(
        [program, "list", "tables"], capture_output=True, text=True, check=False
    )
    return [f"packet filter {line}" for line in listed.stdout.splitlines() if device in line]
