"""Tasks through a manager to a worker in another process and back, beside what it is made of.

Ceiling: a bare grpc.aio bidirectional echo between the same two processes, one message for each
payload. Ours is above it with many in flight because what waits travels in one message; with one in
flight nothing waits. Peers: Celery and dramatiq over Redis, each with one worker process, as people
run them for small tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import uvloop

from bench._echo_peer import METHOD
from bench.harness import median, percentile, result
from leasehold.core import logs
from leasehold.core.service import running
from leasehold.dispatch.manager import Manager
from leasehold.dispatch.registry import ClientPing, Connectivity
from leasehold.dispatch.settings import DispatchSettings
from leasehold.dispatch.task import Call

PAYLOAD = b"x" * 64
IN_FLIGHT = (1, 16, 256)

Rate = tuple[float, float, float]
"""Tasks a second, p50 and p99 in milliseconds."""


def run(quick: bool) -> dict[str, Any]:
    logs.configure("error")
    smoke = "--smoke" in sys.argv
    rounds = 1 if smoke else 5 if quick else 7
    seconds = 0.1 if smoke else 0.7 if quick else 2.0
    numbers = uvloop.run(_grpc(rounds, seconds))
    peers = _queues(0.5 if smoke else 2.0 if quick else 6.0)
    ours = numbers["ours"]
    best_peer = max((p["tasks_per_s"] for p in peers.values() if "tasks_per_s" in p), default=None)
    celery = peers["celery"].get("tasks_per_s")
    return result(
        "dispatch",
        ours[256][0],
        "tasks/s at 256 in flight",
        peer="celery+redis",
        peer_value=celery,
        higher_is_better=True,
        aim=">= 0.7 of the bare grpc.aio echo; >= 5x Celery; p99 at 1 in flight < 2 ms",
        ceiling_ratio={n: round(ours[n][0] / numbers["bare"][n][0], 3) for n in IN_FLIGHT},
        in_flight={
            n: {
                "tasks_per_s": round(ours[n][0]),
                "p50_ms": round(ours[n][1], 3),
                "p99_ms": round(ours[n][2], 3),
                "bare_per_s": round(numbers["bare"][n][0]),
            }
            for n in IN_FLIGHT
        },
        p99_ms_at_1=round(ours[1][2], 3),
        peers=peers,
        best_peer_per_s=best_peer,
    )


async def _grpc(rounds: int, seconds: float) -> dict[str, dict[int, Rate]]:
    with _process("bare") as bare_at, _process("worker") as worker_at:
        settings = DispatchSettings(manager_port=0, queue_limit=100_000)
        async with running(Manager(settings=settings, http=False)) as manager:
            manager.registry.ping(
                ClientPing("w", "bench", "1", Connectivity("0.0.1", "grpc", worker_at)), "127.0.0.1"
            )
            await manager.wait_for_worker("bench", "1")
            call = Call(network="bench", chain_id="1", type="Echo", payload=PAYLOAD)

            async def ours() -> None:
                await manager.call(call)

            got: dict[str, dict[int, list[Rate]]] = {
                "ours": {n: [] for n in IN_FLIGHT},
                "bare": {n: [] for n in IN_FLIGHT},
            }
            for n in IN_FLIGHT:
                for _ in range(rounds):
                    got["ours"][n].append(await _load(ours, n, seconds))
                    got["bare"][n].append(await _bare(bare_at, n, seconds))
                    _say(n, got["ours"][n][-1], got["bare"][n][-1])
    return {
        who: {n: tuple(median([r[i] for r in rates]) for i in range(3)) for n, rates in by.items()}  # type: ignore[misc]
        for who, by in got.items()
    }


async def _load(one: Callable[[], Awaitable[None]], n: int, seconds: float) -> Rate:
    """``n`` callers, each asking again as soon as it was answered."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def caller() -> None:
        while (began := time.perf_counter()) < end:
            await one()
            times.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(n)))
    took = time.perf_counter() - began
    return len(times) / took, percentile(times, 0.5) * 1e3, percentile(times, 0.99) * 1e3


async def _bare(address: str, n: int, seconds: float) -> Rate:
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(METHOD)()
        sent: list[float] = []
        times: list[float] = []
        for _ in range(n):
            sent.append(time.perf_counter())
            await call.write(PAYLOAD)
        began = time.perf_counter()
        end = began + seconds
        position = 0
        while True:
            await call.read()
            now = time.perf_counter()
            times.append(now - sent[position])
            position += 1
            if now > end:
                break
            sent.append(now)
            await call.write(PAYLOAD)
        took = time.perf_counter() - began
        call.cancel()
    return len(times) / took, percentile(times, 0.5) * 1e3, percentile(times, 0.99) * 1e3


@contextlib.contextmanager
def _process(which: str) -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-m", "bench._echo_peer", which], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


# Celery and dramatiq


def _queues(seconds: float) -> dict[str, dict[str, Any]]:
    redis = shutil.which("redis-server")
    if redis is None:
        missing = {"peer_error": "redis-server is not installed"}
        return {"celery": missing, "dramatiq": missing}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [redis, "--port", str(port), "--save", "", "--dir", folder, "--bind", "127.0.0.1"],
            stdout=subprocess.DEVNULL,
        )
        os.environ["BENCH_REDIS"] = f"redis://127.0.0.1:{port}/0"
        try:
            return {
                "celery": _attempt(_celery, seconds),
                "dramatiq": _attempt(_dramatiq, seconds),
            }
        finally:
            server.kill()
            server.wait()


def _attempt(measure: Callable[[float], dict[str, Any]], seconds: float) -> dict[str, Any]:
    try:
        return measure(seconds)
    except Exception as error:
        return {"peer_error": f"{type(error).__name__}: {error}"}


def _celery(seconds: float) -> dict[str, Any]:
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "bench._celery_peer", "worker", "-c", "2",
         "--loglevel", "ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        from bench._celery_peer import echo

        echo.delay("x").get(timeout=30)
        return _batches(
            lambda n: [echo.delay("x" * 64) for _ in range(n)],
            lambda waiting: [r.get(timeout=60) for r in waiting],
            seconds,
        )
    finally:
        worker.terminate()
        worker.wait()


def _dramatiq(seconds: float) -> dict[str, Any]:
    worker = subprocess.Popen(
        [sys.executable, "-m", "dramatiq", "bench._dramatiq_peer", "-p", "1", "-t", "4"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        from bench._dramatiq_peer import echo

        echo.send("x").get_result(block=True, timeout=30_000)
        return _batches(
            lambda n: [echo.send("x" * 64) for _ in range(n)],
            lambda waiting: [m.get_result(block=True, timeout=60_000) for m in waiting],
            seconds,
        )
    finally:
        worker.terminate()
        worker.wait()


def _batches(
    send: Callable[[int], list[Any]], wait: Callable[[list[Any]], Any], seconds: float
) -> dict[str, Any]:
    """256 in flight in batches, and one at a time."""
    done = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        wait(send(256))
        done += 256
    rate = done / (time.perf_counter() - began)
    times = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds / 2:
        one = time.perf_counter()
        wait(send(1))
        times.append(time.perf_counter() - one)
    return {
        "tasks_per_s": round(rate),
        "p50_ms_at_1": round(percentile(times, 0.5) * 1e3, 2),
        "p99_ms_at_1": round(percentile(times, 0.99) * 1e3, 2),
    }


def _say(n: int, ours: Rate, bare: Rate) -> None:
    print(
        f"{n:4d} in flight: {ours[0]:8.0f}/s p50 {ours[1]:.3f} ms p99 {ours[2]:.3f} ms"
        f"   bare {bare[0]:8.0f}/s p50 {bare[1]:.3f} p99 {bare[2]:.3f}",
        file=sys.stderr,
    )
