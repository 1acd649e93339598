"""A fleet pulls an image nobody has: bytes that leave the registry, and the time until all have it.

Twenty nodes, each a process, on loopback, all asked at once; the registry is Debian's
docker-registry behind a proxy that counts bytes and passes on a fixed rate in all. The baseline is
one node pulling alone at that rate. What twenty nodes without one another would take is *scaled*
from that, not measured: at a fixed rate they share it. Nothing is unpacked.

Twenty nodes on one machine also share its processors: ``processor_bound_seconds`` is what the work
of all nodes takes on them even if nothing else runs, so ``ratio`` cannot fall below that over the
pull of one. In a fleet each node has its own.

Besides: the image in one and in four layers, an upgrade that shares all layers but one, the node
that reads from the registry killed half-way, and a tenth of the nodes refusing connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from bench import harness
from bench._cold_node import keys_of
from bench.mirror import docker_registry
from leasehold.images import build
from leasehold.model.digest import Digest

NODES = 20
MIB = 1024 * 1024
TICK = 0.02
"""Seconds between two portions of the proxy."""


class Proxy:
    """Counts what the registry sends, and lets at most ``rate`` bytes a second through, in all."""

    def __init__(self, target: str, rate: float) -> None:
        self.target = target
        self.rate = rate
        self.bytes = 0
        self._credit = 0.0
        self._news = asyncio.Event()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        refill = asyncio.create_task(self._refill())
        port = server.sockets[0].getsockname()[1]
        try:
            yield f"127.0.0.1:{port}"
        finally:
            refill.cancel()
            server.close()

    async def passed(self, count: int) -> None:
        """Wait until so many bytes went through."""
        while self.bytes < count:
            await self._news.wait()

    async def _refill(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(TICK)
            now = time.monotonic()
            # A second's credit at most: a busy machine loses nothing, a pause buys no burst.
            self._credit = min(self._credit + self.rate * (now - last), self.rate)
            last = now
            self._news.set()
            self._news = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.partition(":")
        inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(
                self._copy(reader, inner_writer, limited=False),
                self._copy(inner_reader, writer, limited=True),
            )
        except OSError:
            pass
        finally:
            writer.close()
            inner_writer.close()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, limited: bool
    ) -> None:
        while data := await reader.read(16 * 1024):
            if limited:
                while self._credit < len(data):
                    await self._news.wait()
                self._credit -= len(data)
                self.bytes += len(data)
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


class Fleet:
    """Node processes over one members file."""

    def __init__(self, folder: Path, registry: str, count: int) -> None:
        self.folder = folder
        self.registry = registry
        self.names = [f"node-{i:02}" for i in range(count)]
        self.processes: dict[str, asyncio.subprocess.Process] = {}

    async def __aenter__(self) -> Fleet:
        members = []
        ports = free_ports()
        for name in self.names:
            peer = str(keys_of(name).peer_id)
            members.append(
                {
                    "node": name,
                    "peer_id": peer,
                    "addresses": [f"/ip4/127.0.0.1/tcp/{next(ports)}/p2p/{peer}"],
                    "transfer": f"127.0.0.1:{next(ports)}",
                }
            )
        self.file = self.folder / "members.json"
        self.file.write_text(json.dumps(members))
        await asyncio.gather(*(self._start(name) for name in self.names))
        return self

    async def _start(self, name: str) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench._cold_node", name, str(self.folder / name),
            str(self.file), self.registry,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=MIB,
        )  # fmt: skip
        self.processes[name] = process
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError(f"{name} did not start")

    async def __aexit__(self, *_: object) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await asyncio.gather(*(process.wait() for process in self.processes.values()))

    async def pull(self, name: str, reference: str) -> dict[str, Any]:
        process = self.processes[name]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"pull {reference}\n".encode())
        line = await process.stdout.readline()
        return json.loads(line) if line else {"node": name, "error": "killed"}

    def cpu(self) -> float:
        """Seconds of processor time all nodes have used."""
        ticks = 0
        for process in self.processes.values():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def kill(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGKILL)


def run(quick: bool) -> dict[str, Any]:
    return asyncio.run(measure(quick))


async def measure(quick: bool) -> dict[str, Any]:
    total, rate = (32, 4) if quick else (256, 8)
    with tempfile.TemporaryDirectory(prefix="cold") as name:
        folder = Path(name)
        with docker_registry(folder) as host:
            bench = Bench(folder, host, total * MIB, rate * MIB)
            alone = await bench.alone()
            main = await bench.fleet("six", layers=6)
            say(f"one node alone: {alone:.1f} s for {total} MiB at {rate} MiB/s")
            extras: dict[str, Any] = {}
            if not quick:
                extras["one_layer"] = await bench.fleet("one", layers=1)
                extras["four_layers"] = await bench.fleet("four", layers=4)
                extras["upgrade"] = await bench.upgrade()
                extras["puller_killed"] = await bench.fleet("killed", layers=6, kill=True)
                extras["tenth_refusing"] = await bench.fleet("refusing", layers=6, refusing=0.1)
            return harness.result(
                "cold_start",
                main["seconds"],
                "seconds until 20 nodes have it",
                peer="one node pulling alone at the same rate",
                peer_value=alone,
                higher_is_better=False,
                aim="ratio <= 1.5, origin_bytes_ratio <= 1.01",
                origin_bytes_ratio=main["origin_bytes_ratio"],
                direct_20_nodes_seconds_scaled=round(alone * NODES, 1),
                image_mib=total,
                rate_mib_s=rate,
                processor_bound_seconds=round(main["cpu_seconds"] / (os.cpu_count() or 1), 2),
                fleet=main,
                **extras,
            )


class Bench:
    """The registry, the proxy's rate, and the images made for the runs."""

    def __init__(self, folder: Path, host: str, size: int, rate: float) -> None:
        self.folder, self.host, self.size, self.rate = folder, host, size, rate
        self.runs = 0

    def image(self, size: int, layers: int) -> build.Built:
        parts = []
        for index in range(layers):
            # Random bytes: nothing shrinks, no layer is another's copy; no tar, nobody unpacks it.
            count = size // layers + (index < size % layers)
            blob = secrets.token_bytes(count)
            digest = Digest.of(blob)
            parts.append(build.Layer(blob, digest, digest, build.LAYER_TYPES[""]))
        return build.image(parts)

    @contextlib.asynccontextmanager
    async def proxied(self, count: int) -> AsyncIterator[tuple[Proxy, Fleet]]:
        self.runs += 1
        folder = self.folder / f"run{self.runs}"
        folder.mkdir()
        proxy = Proxy(self.host, self.rate)
        async with proxy.listening() as registry, Fleet(folder, registry, count) as fleet:
            yield proxy, fleet

    async def alone(self) -> float:
        """Seconds of one node that has no one to ask."""
        built = self.image(self.size, 6)
        await build.push(built, self.host, "bench/alone", "1")
        async with self.proxied(1) as (_, fleet):
            done = await fleet.pull(fleet.names[0], f"{fleet.registry}/bench/alone:1")
            if "error" in done:
                raise RuntimeError(str(done))
            return float(done["ended"] - done["began"])

    async def fleet(
        self, name: str, *, layers: int, kill: bool = False, refusing: float = 0.0
    ) -> dict[str, Any]:
        built = self.image(self.size, layers)
        await build.push(built, self.host, f"bench/{name}", "1")
        async with self.proxied(NODES) as (proxy, fleet):
            for gone in fleet.names[: int(NODES * refusing)]:
                fleet.kill(gone)
            asked = fleet.names[int(NODES * refusing) :]
            return await self.round(proxy, fleet, asked, f"bench/{name}:1", built, kill=kill)

    async def upgrade(self) -> dict[str, Any]:
        """Version 2 changes one layer of six; only that one leaves the registry."""
        first = self.image(self.size, 6)
        fresh = self.image(self.size // 6, 1).layers
        second = build.image([*first.layers[:5], *fresh])
        await build.push(first, self.host, "bench/upgrade", "1")
        await build.push(second, self.host, "bench/upgrade", "2")
        async with self.proxied(NODES) as (proxy, fleet):
            await self.round(proxy, fleet, fleet.names, "bench/upgrade:1", first)
            before = proxy.bytes
            found = await self.round(proxy, fleet, fleet.names, "bench/upgrade:2", second)
            new = len(fresh[0].blob) + len(second.config) + len(second.manifest)
            found["origin_bytes_ratio"] = round((proxy.bytes - before) / new, 4)
            return found

    async def round(
        self,
        proxy: Proxy,
        fleet: Fleet,
        names: list[str],
        reference: str,
        built: build.Built,
        *,
        kill: bool = False,
    ) -> dict[str, Any]:
        before, began, worked = proxy.bytes, time.time(), fleet.cpu()
        pulls = [
            asyncio.create_task(fleet.pull(name, f"{fleet.registry}/{reference}")) for name in names
        ]
        if kill:
            await proxy.passed(before + built.size // 2)
            # The pullers of six layers are several nodes: the one with the first rank goes.
            fleet.kill(first_rank(names, built))
        done = await asyncio.gather(*pulls)
        good = [d for d in done if "error" not in d]
        bad = [d for d in done if "error" in d and d["error"] != "killed"]
        for failed in bad[:3]:
            say(f"  {failed}")
        shares = sorted(
            sum(n for source, n in d["sources"].items() if source != "origin")
            / (d["ended"] - d["began"])
            for d in good
        )
        out = {
            "nodes": len(good),
            "failed": len(bad),
            "seconds": round(max(d["ended"] for d in good) - began, 2),
            "p50_seconds": round(harness.percentile([d["ended"] - began for d in good], 0.5), 2),
            "origin_bytes_ratio": round((proxy.bytes - before) / built.size, 4),
            "origin_pullers": sum("origin" in d["sources"] for d in good),
            "node_mib_s_p50": round(harness.median(shares) / MIB, 2),
            "node_share_of_rate": round(harness.median(shares) / self.rate, 3),
            "cpu_seconds": round(fleet.cpu() - worked, 2),
            "rss_mib_max": round(max(d["rss_mib"] for d in good)),
        }
        say(f"{reference}: {out}")
        return out


def free_ports() -> Iterator[int]:
    """Ports nobody has, below those the kernel gives to connections, so that they stay free."""
    for port in range(random.randrange(12_000, 28_000), 32_000):
        try:
            with socket.socket() as sock:
                sock.bind(("127.0.0.1", port))
        except OSError:
            continue
        yield port


def first_rank(names: list[str], built: build.Built) -> str:
    """The node that ranks first for the first layer."""
    from leasehold.images.hrw import Ranking

    return Ranking(names).top(built.layers[0].digest, 1)[0]


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr)
