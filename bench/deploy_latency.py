"""From a lease's manifest to the first byte of its HTTP answer through ingress, image here already.

``value``: milliseconds, from the durable append of ``manifest.received`` to the answer; everything
on the way is real (log, activity, network, disk of its own, user namespace, limits, seccomp,
health check, ingress). ``peer``: ``podman run -d -p`` of the same image until its port answers, in
the same run, with the runtime that works there. Extras: where our time goes, by the lease's events.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import _deploy_node as nodes
from bench.harness import median, percentile, result
from leasehold.core import logs


def run(quick: bool) -> dict[str, Any]:
    found = nodes.isolated("deploy_latency", quick)
    return result(
        "deploy_latency",
        median(found["ours"]),
        "ms",
        peer=found["peer"],
        peer_value=median(found["podman"]) if found["podman"] else None,
        higher_is_better=False,
        aim="below podman",
        p95=round(percentile(found["ours"], 0.95), 3),
        runs=len(found["ours"]),
        stages_ms=found["stages"],
        teardown_ms=round(median(found["teardown"]), 3),
        **({"peer_error": found["error"]} if found["error"] else {}),
    )


def measure(quick: bool) -> dict[str, Any]:
    logs.configure("error")
    return asyncio.run(_measure(7 if quick else 20))


async def _measure(runs: int) -> dict[str, Any]:
    ours: list[float] = []
    podman: list[float] = []
    teardown: list[float] = []
    stages: dict[str, list[float]] = {}
    async with nodes.node(uplink=False) as node:
        peer = await asyncio.to_thread(Podman, node.folder)
        try:
            for number in range(-2, runs):
                began = time.monotonic()
                await node.accept(number + 10, nodes.group(number + 10))
                await node.until(number + 10, "deploy.healthy")
                await nodes.first_answer(node.deploy.ingress.port, f"l{number + 10}.localhost")
                took = (time.monotonic() - began) * 1000
                theirs = None if peer.error else await peer.once(number)
                if number >= 0:  # the first two warm both up
                    ours.append(took)
                    podman += [] if theirs is None else [theirs]
                    await _stages(node, number + 10, stages)
                began = time.monotonic()
                await node.close(number + 10)
                await node.until(number + 10, "deploy.removed")
                teardown.append((time.monotonic() - began) * 1000)
        finally:
            await asyncio.to_thread(peer.close)
    return {
        "ours": ours,
        "podman": podman,
        "teardown": teardown,
        "stages": {name: round(median(values), 3) for name, values in stages.items()},
        "peer": peer.name,
        "error": peer.error,
    }


async def _stages(node: nodes.Node, number: int, stages: dict[str, list[float]]) -> None:
    from leasehold.events.event import Entity, Event

    before = None
    async for event in node.log.read(Entity("lease", str(nodes.lease(number)))):
        if isinstance(event, Event):
            if before is not None:
                stages.setdefault(event.type, []).append((event.at - before) * 1000)
            before = event.at


class Podman:
    """podman with a store of its own and a configuration that works in small machines."""

    def __init__(self, folder: Path) -> None:
        self.name = "podman run -d -p"
        self.error = ""
        self.folder = Path(tempfile.mkdtemp(prefix="leasehold-podman-"))
        config = self.folder / "containers.conf"
        config.write_text(
            '[containers]\ndefault_ulimits=["nofile=8192:8192","nproc=8192:8192"]\n'
            '[engine]\nruntime="runc"\ncgroup_manager="cgroupfs"\nevents_logger="file"\n'
        )
        self.env = {"CONTAINERS_CONF": str(config), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        try:
            layer = folder / "layer"
            tar = subprocess.run(
                ["tar", "-C", str(layer), "-c", "."], capture_output=True, check=True
            )
            self._podman("import", "-", "bench", input=tar.stdout)
        except (OSError, subprocess.CalledProcessError) as error:
            self.error = str(getattr(error, "stderr", "") or error)[-200:]

    def _podman(self, *arguments: str, input: bytes | None = None) -> bytes:
        return subprocess.run(
            ["podman", "--root", f"{self.folder}/root", "--runroot", f"{self.folder}/run",
             *arguments],
            input=input, capture_output=True, check=True, env=self.env, timeout=60,
        ).stdout  # fmt: skip

    async def once(self, number: int) -> float | None:
        """Milliseconds from the command to the first byte."""
        port, name = 20000 + number + 10, f"b{number + 10}"
        began = time.monotonic()
        try:
            await asyncio.to_thread(
                self._podman, "run", "-d", "--name", name, "-p", f"{port}:80",
                "--memory", "32m", "bench", "/bin/sh", "-c", nodes.SCRIPT,
            )  # fmt: skip
            async with asyncio.timeout(20):
                await nodes.first_answer(port, "x")
        except (OSError, subprocess.SubprocessError) as error:
            self.error = str(getattr(error, "stderr", "") or error)[-200:]
            return None
        finally:
            took = (time.monotonic() - began) * 1000
            with contextlib.suppress(subprocess.SubprocessError):
                await asyncio.to_thread(self._podman, "rm", "-f", "-t", "0", name)
        return took

    def close(self) -> None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self._podman("rm", "-f", "-a", "-t", "0")
        shutil.rmtree(self.folder, ignore_errors=True)
