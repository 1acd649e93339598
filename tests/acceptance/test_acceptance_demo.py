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


def traces() -> set[str]:
    """What a provider could leave on a machine: interfaces, packet filters, mounts, groups."""
    links = json.loads(
        subprocess.run(["ip", "-j", "link"], capture_output=True, check=True, text=True).stdout
    )
    tables = subprocess.run(
        ["nft", "list", "tables"], capture_output=True, check=False, text=True
    ).stdout
    mounts = Path("/proc/self/mountinfo").read_text()
    groups = Path("/sys/fs/cgroup").rglob("leasehold-demo-*")
    return {
        *(f"link {link['ifname']}" for link in links if link["ifname"].startswith("lh")),
        *(f"rules {line}" for line in tables.splitlines() if "leasehold" in line),
        *(f"mount {line.split()[4]}" for line in mounts.splitlines() if "leasehold-demo" in line),
        *(f"group {group}" for group in groups),
    }


def test_demo_once_does_every_step_and_leaves_nothing():
    before = traces()
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
    assert traces() <= before
