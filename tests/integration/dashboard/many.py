"""A gateway with many leases and a long output: ``many.py FOLDER LEASES LINES``.

The log, the gateway, the front door and the dashboard are the real ones; only the workload that
would have written the output is missing. Prints the gateway's URL.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from leasehold.core import logs as own_logs
from leasehold.core.clock import SystemClock
from leasehold.core.service import running
from leasehold.deploy import logs
from leasehold.events.event import Entity, NewEvent
from leasehold.events.sqlite import SqliteLog
from leasehold.gateway import inside, news, stories
from leasehold.gateway import log as log_routes
from leasehold.gateway.front import Front
from leasehold.gateway.ports import LogLine
from leasehold.gateway.server import Gateway
from leasehold.gateway.settings import GatewaySettings
from leasehold.model.events import lease as happened
from leasehold.model.events.market import LeaseWon, Price
from leasehold.model.market import LeaseId

PROVIDER, OWNER, TOKEN = "akash1provider", "akash1owner", "only-for-tests"


class Written:
    """The output of a lease that is only files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def status(self, lease: LeaseId) -> dict[str, Any]:
        return {"services": {}}

    async def logs(
        self, lease: LeaseId, services: Sequence[str], *, follow: bool, tail: int
    ) -> AsyncIterator[LogLine]:
        ended = asyncio.Event() if follow else None
        async for line in logs.read(self.folder, None, tail=tail, ended=ended):
            yield LogLine(line.service, f"{line.service}-{line.replica}", line.text)

    async def search(
        self, lease: LeaseId, services: Sequence[str], text: str, limit: int
    ) -> list[LogLine]:
        found = await asyncio.to_thread(logs.search, self.folder, None, text, limit)
        return [LogLine(line.service, f"{line.service}-0", line.text) for line in found]


async def main(folder: Path, leases: int, lines: int) -> None:
    own_logs.configure("error")  # to standard error: nobody reads our output but the URL
    clock = SystemClock()
    output = folder / "output" / "web"
    output.mkdir(parents=True)
    with (output / "0.log").open("w") as file:
        for at in range(lines):
            file.write(f"2026-01-01T00:00:00.000000Z stdout F line number {at} of the output\n")
    async with running(SqliteLog(folder / "events.sqlite3", clock)) as log:
        for first in range(0, leases, 100):
            async with asyncio.TaskGroup() as tasks:
                for dseq in range(first + 1, min(first + 100, leases) + 1):
                    tasks.create_task(lease_of(log, dseq))
        settings = GatewaySettings(port=0)
        front = Front(
            folder / "d",
            lambda pages, api: [
                sys.executable, "-m", "leasehold.dashboard", "--pages", str(pages),
                "--api", str(api), "--ledger", "http://127.0.0.1:1",
                "--sessions", str(folder / "sessions"),
            ],
            settings,
            clock=clock,
        )  # fmt: skip
        workloads: Any = Written(folder / "output")
        manifest: Any = SimpleNamespace(provider=PROVIDER, lease=_known, history=_history)
        no_engine: Any = SimpleNamespace(tasks=lambda *_: [], counts=list)
        gateway = Gateway(
            settings,
            clock=clock,
            operator_token=TOKEN,
            provider=PROVIDER,
            routes=[
                *news.routes(log, PROVIDER, clock),
                *log_routes.routes(log, no_engine),
                *inside.routes(manifest, workloads),
                *stories.routes(log, PROVIDER, workloads, _close, clock, settings),
            ],
            wrap=front.around,
        )
        async with running(gateway), running(front):
            print(gateway.url, flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def _known(lease: LeaseId) -> None:
    """Every lease is known."""


async def _history(owner: str, dseq: int) -> list[dict[str, Any]]:
    """No manifest was kept."""
    return []


async def _close(lease: LeaseId) -> None:
    """Nothing is closed here."""


async def lease_of(log: SqliteLog, dseq: int) -> None:
    """The whole way of one lease, as the provider writes it."""
    id = LeaseId(OWNER, dseq, 1, 1, PROVIDER)
    price = Price(denom="uakt", amount="1")
    story = [
        LeaseWon(id=id, price=price, group={}, height=1),
        happened.ManifestReceived(id=id, hash="ab", group={}),
        happened.ServiceStarted(id=id, service="web", replica=0, key="k"),
        happened.WorkloadRunning(id=id, hash="ab", uris=[f"http://h{dseq}.example"]),
        happened.WorkloadHealthy(id=id, hash="ab"),
    ]
    await log.append(Entity("lease", str(id)), None, [NewEvent.of(event) for event in story])


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
