"""The spell engine under many clocks.

10,000 spells (1,000 with ``--quick``) are installed and armed with hourly periods: memory and idle
CPU of the node. Then a part of them is given periods so that 200 runs a second fall due, spread
evenly, and real workers run them: ``value`` is the 99th percentile of the time between a tick and
the start of its run. No peer does the same thing, so there is none.
"""

from __future__ import annotations

import asyncio
import random
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import harness
from leasehold.core import logs
from leasehold.core.service import running
from leasehold.node.distro import SpellDistro
from leasehold.node.service import Node
from leasehold.node.settings import NodeSettings, SystemServices
from leasehold.node.spells.trigger import ClockConfig, TriggerConfig
from leasehold.node.testing import deployed, end_keeper

RATE = 200
BATCH = 50
PERIOD = 5
"""Seconds between runs of each busy spell, so RATE * PERIOD of them are busy."""


def run(quick: bool) -> dict[str, Any]:
    logs.configure("error")
    return asyncio.run(_run(quick))


async def _run(quick: bool) -> dict[str, Any]:
    count = 1000 if quick else 10_000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    root = Path(tempfile.mkdtemp(prefix="bench-spells-"))
    node = Node(
        root,
        settings=NodeSettings(health_sec=0, spell_workers=2, max_spell_workers=4),
        system_services=SystemServices(enable=()),
    )
    late: list[float] = []
    try:
        async with running(node):
            await deployed(node)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            began = time.perf_counter()
            hourly = TriggerConfig(ClockConfig(int(time.time()) + 3600, 0, 3600))
            spells: list[str] = []
            distro = SpellDistro(name="s", script="1 + 1", trigger=hourly)
            for n in range(0, count, BATCH):
                made = (
                    node.install_spell(node.principals.host, "host", "", distro)
                    for _ in range(BATCH)
                )
                spells += await asyncio.gather(*made)
                if n % 2000 == 0:
                    print(f"installed {n + BATCH}", file=sys.stderr)
            install = (time.perf_counter() - began) / count
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            idle = await _idle(3 if quick else 10)
            busy = spells[: RATE * PERIOD]
            now = time.time() + 1
            rng = random.Random(7)
            config = TriggerConfig(ClockConfig(1, 0, PERIOD))
            for n, spell in enumerate(busy):
                state = node.spells._states[spell]
                state.config = config
                at = now + (n + rng.random()) / RATE
                node.spells.bus.subscribe(spell, config, armed_at=at)
            seconds = 8 if quick else 25
            cpu = time.process_time()
            await asyncio.sleep(seconds + 1)
            cpu = (time.process_time() - cpu) / (seconds + 1)
            for spell in busy:
                records = await node.spells.use(spell, lambda s: s.runs(200))
                late += [record.late for record in records if record.late is not None]
        ran = len(late)
        return harness.result(
            "spells",
            harness.percentile(late, 0.99) * 1000,
            "ms",
            peer="",
            peer_value=None,
            higher_is_better=False,
            aim="< 20 ms at 200 runs/s; idle CPU < 1 % with 10,000 armed",
            armed=count,
            idle_cpu_percent=round(idle * 100, 3),
            bytes_per_spell=round(memory * 1024 / count),
            install_ms=round(install * 1000, 2),
            runs_per_s=round(ran / seconds, 1),
            lateness_p50_ms=round(harness.percentile(late, 0.5) * 1000, 3),
            lateness_max_ms=round(max(late) * 1000, 1),
            node_cpu_percent=round(cpu * 100, 1),
        )
    finally:
        await end_keeper(root)
        shutil.rmtree(root, ignore_errors=True)


async def _idle(seconds: float) -> float:
    """Share of a core used while nothing is due."""
    await asyncio.sleep(1)
    cpu = time.process_time()
    await asyncio.sleep(seconds)
    return (time.process_time() - cpu) / seconds
