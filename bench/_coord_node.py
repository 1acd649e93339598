"""One end of ``bench coord``: ``serve``, ``tls FOLDER`` or ``ask ADDRESS [CERTIFICATE]``.

A server prints its address. A client reads ``CONCURRENCY SECONDS`` a line from stdin and prints
``{"rate", "p50_ms", "p99_ms"}``. Over ``tls`` the same frames travel length-prefixed on one
connection each way, one after another: what asyncio and TLS alone allow.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from leasehold.core.clock import SystemClock
from leasehold.core.logs import configure
from leasehold.core.service import running
from leasehold.images import peertls
from leasehold.images.coord.client import Client
from leasehold.images.coord.messages import Intent, PullIntentRequest, encode
from leasehold.images.coord.server import Server
from leasehold.images.inflight import InFlight
from leasehold.images.membership import Member, View
from leasehold.images.negative import NegativeCache
from leasehold.model.digest import Digest
from leasehold.p2p.host import Host
from leasehold.p2p.keys import KeyPair
from leasehold.p2p.multiaddr import Multiaddr
from leasehold.p2p.settings import P2PSettings

DIGEST = Digest.of(b"bench coord")
REQUEST = encode(PullIntentRequest(DIGEST))
REPLY = encode(Intent(has_cached=True, hrw_rank=0))
SETTINGS = P2PSettings(listen=["/ip4/127.0.0.1/tcp/0"])
Ask = Callable[[], Awaitable[object]]


class Held:
    async def has(self, digest: Digest) -> bool:
        return digest == DIGEST


async def serve() -> None:
    clock = SystemClock()
    async with running(Host(KeyPair.generate(), SETTINGS)) as host:
        view = View([Member(node=f"node-{i}") for i in range(1000)])
        store: Any = Held()
        Server(
            "node-1", lambda: view, store, InFlight(clock), NegativeCache(clock), None, clock
        ).bind(host)
        print(host.addresses[0].with_peer(host.peer_id), flush=True)
        await asyncio.Event().wait()


class Echo(asyncio.Protocol):
    """Answers each whole frame with ``REPLY``; all frames of a read with one write."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.left = transport, 0

    def data_received(self, data: bytes) -> None:
        whole, self.left = divmod(self.left + len(data), len(REQUEST))
        if whole:
            self.transport.write(REPLY * whole)


async def serve_tls(folder: str) -> None:
    cert, key = peertls.write_files(KeyPair.generate(), SystemClock(), Path(folder))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0, ssl=peertls.server_context(cert, key))
    print(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.Event().wait()


class Pipeline(asyncio.Protocol):
    """Requests in order, answers in order."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[None]] = []
        self.done = self.left = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        whole, self.left = divmod(self.left + len(data), len(REPLY))
        for future in self.waiting[:whole]:
            future.set_result(None)
        del self.waiting[:whole]

    def ask(self) -> Awaitable[None]:
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        self.transport.write(REQUEST)
        return future


async def ask(address: str) -> None:
    if not address.startswith("/"):
        host, _, port = address.partition(":")
        _, pipe = await asyncio.get_running_loop().create_connection(
            Pipeline, host, int(port), ssl=peertls.client_context()
        )
        await measure(pipe.ask)
        return
    where = Multiaddr.parse(address)
    assert where.peer_id is not None
    async with running(Host(KeyPair.generate(), SETTINGS)) as host:
        host.learn(where.peer_id, [where])
        client, node = Client(host, None, SystemClock()), str(where.peer_id)
        await measure(lambda: client.pull_intent_query(node, DIGEST))


async def measure(request: Ask) -> None:
    await request()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        concurrency, seconds = line.split()
        times: list[float] = []
        start = time.perf_counter()
        end = start + float(seconds)

        async def worker(times: list[float] = times, end: float = end) -> None:
            while (began := time.perf_counter()) < end:
                await request()
                times.append(time.perf_counter() - began)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(int(concurrency)):
                tasks.create_task(worker())
        elapsed = time.perf_counter() - start
        times.sort()
        found = {
            "rate": len(times) / elapsed,
            "p50_ms": times[len(times) // 2] * 1000,
            "p99_ms": times[int(len(times) * 0.99)] * 1000,
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    configure("error")
    mode, *arguments = sys.argv[1:]
    uvloop.run({"serve": serve, "tls": serve_tls, "ask": ask}[mode](*arguments))
