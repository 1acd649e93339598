"""The demo, once, with every promise it makes checked from outside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

STEPS = [
    "image built",
    "registry started",
    "image pushed",
    "provider ready",
    "account funded",
    "deployed",
    "first answer",
]
PATH = [
    "order",
    "bid",
    "lease",
    "manifest accepted",
    "image pulled",
    "volume ready",
    "running",
    "first answer",
]


def traces(device: str, folder: str) -> set[str]:
    """What a demo could leave on a machine: its interface, packet filters, mounts, groups."""
    links = json.loads(
        subprocess.run(["ip", "-j", "link"], capture_output=True, check=True, text=True).stdout
    )
    tables = subprocess.run(
        ["nft", "list", "tables"], capture_output=True, check=False, text=True
    ).stdout
    mounts = Path("/proc/self/mountinfo").read_text()
    groups = Path("/sys/fs/cgroup").rglob(folder)
    return {
        *(f"link {link['ifname']}" for link in links if link["ifname"] == device),
        *(f"rules {line}" for line in tables.splitlines() if device in line),
        *(f"mount {line.split()[4]}" for line in mounts.splitlines() if folder in line),
        *(f"group {group}" for group in groups),
    }


def test_demo_once_does_every_step_and_leaves_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "leasehold", "demo", "--once", "--json"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    result = json.loads(done.stdout)
    assert (done.returncode, result["ok"], result["error"]) == (0, True, None), done.stdout
    assert [step["name"] for step in result["steps"] if step["ok"]] == STEPS
    times = {entry["name"]: entry["ms"] for entry in result["timeline"]}
    assert [name for name in sorted(times, key=lambda n: times[n]) if name in PATH] == PATH
    assert result["answer"] == "hello from your lease, start number 1"
    assert result["left"] == []
    removed = dict(what.rsplit(" ", 1) for what in result["removed"] if " " in what)
    assert traces(removed["network"], Path(removed["folder"]).name) == set()
