"""From ``leasehold up`` typed to ready, as a process of its own.

``value``: milliseconds from the start of the process until ``run.json`` says it is ready, in a
state folder that was used before (what a restart is). ``peer``: the floor, a Python process that
imports the same modules and ends, in the same run. Extras: the first start in an empty folder, and
the memory of the ready process. Needs root, as ``up`` does.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from bench.harness import median, result

SETTINGS = """
[market]
port = 0
[dispatch]
manager_port = 0
worker_port = 0
[schedule]
port = 0
[gateway]
port = 0
[ops]
port = 0
[deploy]
ingress_ports = [0]
"""

WAIT = 60.0


def run(quick: bool) -> dict[str, Any]:
    rounds = 3 if quick else 10
    folder = Path(tempfile.mkdtemp(prefix="leasehold-bench-", dir="/var/tmp"))
    folder.chmod(0o711)
    (folder / "leasehold.toml").write_text(SETTINGS)
    ours: list[float] = []
    floor: list[float] = []
    try:
        first, memory = _up(folder)
        for _ in range(rounds):
            took, memory = _up(folder)
            ours.append(took)
            floor.append(_import())
        _up(folder, clear=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result(
        "startup",
        median(ours),
        "ms",
        peer="a Python process that imports the same modules",
        peer_value=median(floor),
        higher_is_better=False,
        aim="under 2000 ms and 250 MB",
        first_ms=round(first, 1),
        rss_mb=round(memory, 1),
        runs=rounds,
    )


def _up(folder: Path, *, clear: bool = False) -> tuple[float, float]:
    """Milliseconds to ready, and MB of memory then."""
    began = time.monotonic()
    with (folder / "up.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "leasehold", "up", "--state", str(folder)],
            stdout=log,
            stderr=log,
        )
    ready = folder / "run.json"
    while not ready.exists():
        if process.poll() is not None or time.monotonic() - began > WAIT:
            raise RuntimeError((folder / "up.log").read_text()[-2000:])
        time.sleep(0.002)
    took = (time.monotonic() - began) * 1000
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    if clear:
        httpx.post(
            json.loads(ready.read_text())["gateway"] + "/v1/node/clear",
            headers={"Authorization": f"Bearer {(folder / 'operator.token').read_text().strip()}"},
            timeout=WAIT,
            trust_env=False,
        ).raise_for_status()
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=WAIT)
    return took, pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _import() -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import leasehold.app.up, leasehold.cli.up"], check=True)
    return (time.monotonic() - began) * 1000
