"""Questions between nodes: ``pull_intent_query`` at 1, 32 and 256 in flight over one connection.

Client and server are a process each; the server is the real one, over our libp2p. The peer is
js-libp2p asking js-libp2p the same bytes at 256 in flight (``scripts/interop-setup`` installs it);
the ceiling is the same frames, length-prefixed and pipelined over bare asyncio with TLS 1.3. All
take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bench import harness
from bench._coord_node import DIGEST, REPLY, REQUEST

LEVELS = (1, 32, 256)
TOP = 256


def run(quick: bool) -> dict[str, Any]:
    return asyncio.run(measure(quick))


class Asker:
    """A client process and the server process it asks."""

    def __init__(self, client: asyncio.subprocess.Process, seconds: float) -> None:
        self.client = client
        self.seconds = seconds
        self.found: dict[int, list[dict[str, float]]] = {level: [] for level in LEVELS}

    async def at(self, level: int) -> float:
        assert self.client.stdin is not None
        assert self.client.stdout is not None
        self.client.stdin.write(f"{level} {self.seconds}\n".encode())
        line = json.loads(await self.client.stdout.readline())
        self.found[level].append(line)
        return float(line["rate"])

    def median(self, level: int, what: str) -> float:
        return harness.median([line[what] for line in self.found[level]])


@contextlib.asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench._coord_node", *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield child
    finally:
        child.kill()
        await child.wait()


@contextlib.asynccontextmanager
async def asking(seconds: float, *server: str) -> AsyncIterator[Asker]:
    async with process(*server) as serving:
        assert serving.stdout is not None
        address = (await serving.stdout.readline()).decode().strip()
        async with process("ask", address) as client:
            yield Asker(client, seconds)


class JsPair:
    """js-libp2p asking js-libp2p, or the reason why not."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.error = ""
        self.p99: list[float] = []

    async def start(self, stack: contextlib.AsyncExitStack) -> None:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/interop"))
        from interop_peers import running_peer

        try:
            self.client = await stack.enter_async_context(running_peer("js"))
            server = await stack.enter_async_context(running_peer("js"))
            await server.call("reply", kind="0a", frame=REPLY[1:].hex())
            await self.client.call("dial", address=server.addresses[0])
            self.server = server.id
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"

    async def at(self, level: int) -> float:
        if self.error:
            return 0.0
        answer = await self.client.call(
            "bench",
            peer=self.server,
            frame=REQUEST[1:].hex(),
            concurrency=level,
            seconds=self.seconds,
            timeout=self.seconds + 60,
        )
        self.p99.append(answer["p99_ms"])
        return float(answer["rate"])


async def measure(quick: bool) -> dict[str, Any]:
    seconds, rounds = (0.5, 3) if quick else (4.0, 5)
    js = JsPair(seconds)
    async with contextlib.AsyncExitStack() as stack:
        ours = await stack.enter_async_context(asking(seconds, "serve"))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        bare = await stack.enter_async_context(asking(seconds, "tls", folder))
        await js.start(stack)
        for level in LEVELS[:-1]:
            for _ in range(rounds):
                await ours.at(level)
        await js.at(TOP)  # warm: V8 compiles
        js.p99.clear()
        mine, theirs, ceiling = await harness.interleaved(
            rounds, lambda: ours.at(TOP), lambda: js.at(TOP), lambda: bare.at(TOP)
        )
    value = harness.median(mine)
    extras: dict[str, Any] = {"peer_error": js.error} if js.error else {}
    if not js.error:
        extras["peer_p99_ms"] = round(harness.median(js.p99), 2)
    return harness.result(
        "coord",
        value,
        "requests/s at 256 in flight",
        peer="js-libp2p asking js-libp2p",
        peer_value=None if js.error else harness.median(theirs),
        higher_is_better=True,
        aim="ratio >= 5",
        ceiling="asyncio with TLS 1.3, pipelined",
        ceiling_value=round(harness.median(ceiling)),
        ceiling_ratio=round(value / harness.median(ceiling), 4),
        levels={
            str(level): {
                "rate": round(ours.median(level, "rate")),
                "p50_ms": round(ours.median(level, "p50_ms"), 3),
                "p99_ms": round(ours.median(level, "p99_ms"), 3),
            }
            for level in LEVELS
        },
        digest=str(DIGEST)[:19],
        **extras,
    )
