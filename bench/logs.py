"""How fast the output of a workload reaches somebody who follows its log.

``value``: MB/s of text from a process, through the FIFO, the keeper (which puts a time on each line
and writes the rotated file) to a follower of ``DeployService.logs``'s reader in the provider.
``peer``: the same program's output through a pipe into ``tee`` and read back by ``tail -F``, which
adds nothing and rotates nothing.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.harness import interleaved, median, result
from leasehold.core import logs as core_logs
from leasehold.core.service import running
from leasehold.deploy import logs
from leasehold.deploy.keeper.client import KeeperClient

LINE = "x" * 99


def run(quick: bool) -> dict[str, Any]:
    core_logs.configure("error")
    lines = 200_000 if quick else 1_000_000
    ours, peer = asyncio.run(_measure(3 if quick else 5, lines))
    return result(
        "logs",
        median(ours),
        "MB/s",
        peer="tee + tail -F",
        peer_value=median(peer),
        higher_is_better=True,
        aim="ceiling of a plain copy",
        lines=lines,
        lines_per_second=round(median(ours) * 1e6 / (len(LINE) + 1)),
    )


async def _measure(runs: int, lines: int) -> list[list[float]]:
    folder = Path(tempfile.mkdtemp(prefix="leasehold-logs-"))
    keeper = KeeperClient(folder / "keeper")
    counter = 0

    async def ours() -> float:
        nonlocal counter
        counter += 1
        place = folder / f"lease{counter}"
        path = place / "web" / "0.log"
        (place / "web").mkdir(parents=True)
        began = time.monotonic()
        await keeper.ask(
            "spawn",
            id=f"p{counter}",
            argv=["/bin/sh", "-c", f"yes {LINE} | head -n {lines}"],
            output={"path": str(path), "bytes": 64 << 20, "files": 5, "rate": 1 << 40},
        )
        seen = 0
        async for _ in logs.read(place, None, tail=None, ended=asyncio.Event()):
            seen += 1
            if seen == lines:
                break
        took = time.monotonic() - began
        await keeper.ask("delete", id=f"p{counter}")
        return lines * (len(LINE) + 1) / took / 1e6

    async def peer() -> float:
        path = folder / "peer.log"
        path.write_text("")
        began = time.monotonic()
        process = await asyncio.create_subprocess_shell(
            f"tail -n +1 -F {path} 2>/dev/null | head -n {lines} | wc -l & "
            f"yes {LINE} | head -n {lines} | tee -a {path} > /dev/null; wait",
            stdout=asyncio.subprocess.PIPE,
        )
        output = (await process.communicate())[0]
        assert int(output) == lines
        took = time.monotonic() - began
        path.unlink()
        return lines * (len(LINE) + 1) / took / 1e6

    try:
        async with running(keeper):
            values = await interleaved(runs, ours, peer)
            await keeper.retire(force=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return values
