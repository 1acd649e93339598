"""Many leases at once, from their manifests to all of them healthy.

``value``: seconds for all of them through the whole system. ``peer``: as many raw ``crun run`` of
the same bundles, 8 at a time, with the same network set-up and an HTTP check of each, and nothing
else (no log, no disks of their own, no ingress, no output). Extras: memory a lease costs the
machine, and what the idle provider uses of a CPU with all of them running.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import time
from pathlib import Path
from typing import Any

from bench import _deploy_node as nodes
from bench.harness import median, result
from leasehold.core import logs
from leasehold.deploy.keeper import host, rootfs

LEASES = 100
AT_ONCE = 8


def run(quick: bool) -> dict[str, Any]:
    found = nodes.isolated("deploy_storm", quick)
    return result(
        "deploy_storm",
        median(found["ours"]),
        "s",
        peer=f"raw crun, {AT_ONCE} at a time",
        peer_value=median(found["raw"]),
        higher_is_better=False,
        aim="ratio <= 3",
        leases=found["leases"],
        runs=len(found["ours"]),
        mib_a_lease=found["mib"],
        idle_cpu_percent=found["idle"],
    )


def measure(quick: bool) -> dict[str, Any]:
    logs.configure("error")
    # Ours assembles roots in the keeper's mount namespace; the raw peer does it in this one.
    host.arrange_cgroups()
    return asyncio.run(_measure(20 if quick else LEASES, 1 if quick else 3))


async def _measure(leases: int, runs: int) -> dict[str, Any]:
    ours: list[float] = []
    raw: list[float] = []
    mib, idle = 0.0, 0.0
    async with nodes.node(uplink=False) as node:
        base = 0
        for _ in range(runs):
            free = _available()
            numbers = range(base, base + leases)
            began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for number in numbers:
                    group.create_task(node.accept(number, nodes.group(number)))
            async with asyncio.TaskGroup() as group:
                for number in numbers:
                    group.create_task(node.until(number, "deploy.healthy"))
            ours.append(time.monotonic() - began)
            mib = (free - _available()) / leases / (1 << 20)
            used = _cpu()
            await asyncio.sleep(3)
            idle = (_cpu() - used) / 3 * 100
            raw.append(await _raw(node, leases))
            async with asyncio.TaskGroup() as group:
                for number in numbers:
                    group.create_task(node.close(number))
            async with asyncio.TaskGroup() as group:
                for number in numbers:
                    group.create_task(node.until(number, "deploy.removed"))
            base += leases
    return {
        "ours": ours,
        "raw": raw,
        "leases": leases,
        "mib": round(mib, 2),
        "idle": round(idle, 2),
    }


def _available() -> int:
    with open("/proc/meminfo", encoding="ascii") as info:
        line = next(line for line in info if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _raw(node: nodes.Node, leases: int) -> float:
    """The same bundles by hand."""
    replicas = await node.deploy.runtime.replicas()
    template = json.loads((node.deploy.runtime.home(replicas[0].key) / "config.json").read_text())
    folder = node.folder / "raw"
    roots = Path("/run/leasehold-bench")
    roots.mkdir(mode=0o711, exist_ok=True)
    ranges = rootfs.IdRanges()
    settings = node.deploy.settings
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        key = f"raw{number}"
        async with slots:
            joined = await node.deploy.network.join(key, mark=10_000 + number)
            home = folder / key
            home.mkdir(parents=True)
            spec = {
                "layers": [str(node.folder / "layer")],
                "writable": str(home),
                "idmap": [settings.id_base, settings.id_count],
                "volatile": True,
                "directories": ["/proc", "/sys", "/dev"],
            }
            rootfs.assemble(str(roots / key), spec, ranges)
            config = {**template, "root": {"path": str(roots / key / "rootfs")}}
            linux = {**template["linux"], "cgroupsPath": f"{settings.cgroup_parent}/raw/{key}"}
            linux["namespaces"] = [
                {**n, "path": joined.path} if n["type"] == "network" else n
                for n in linux["namespaces"]
            ]
            config["linux"] = linux
            (home / "config.json").write_text(json.dumps(config))
            process = await asyncio.create_subprocess_exec(
                "crun", "--root", str(folder / "state"), "--cgroup-manager=cgroupfs", "run", "-d",
                "--bundle", str(home), key,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            assert await process.wait() == 0
            rootfs.dismantle(str(roots / key))
            await _answers(node, joined.attachment.address)

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(leases):
            group.create_task(one(number))
    took = time.monotonic() - began
    for number in range(leases):
        process = await asyncio.create_subprocess_exec(
            "crun", "--root", str(folder / "state"), "--cgroup-manager=cgroupfs", "delete", "-f",
            f"raw{number}",
        )  # fmt: skip
        await process.wait()
        await node.deploy.network.leave(f"raw{number}")
        rootfs.remove(str(roots / f"raw{number}"))
    shutil.rmtree(folder, ignore_errors=True)
    os.rmdir(roots)
    return took


async def _answers(node: nodes.Node, address: str) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(10_000):
        sock = await node.deploy.network.socket()
        try:
            await loop.sock_connect(sock, (address, 80))
            await loop.sock_sendall(sock, b"GET / HTTP/1.0\r\n\r\n")
            if b"200" in await loop.sock_recv(sock, 1024):
                return
        except OSError:
            pass
        finally:
            sock.close()
        await asyncio.sleep(0.002)
    raise TimeoutError(address)
