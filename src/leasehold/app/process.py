"""A provider as a process: settings, logs, signals, and ``run.json`` for other commands."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from leasehold.app.folder import StateFolder
from leasehold.app.running import Running, write_running
from leasehold.app.settings import Settings, read
from leasehold.core import logs
from leasehold.core.service import Group


def run_provider(state: Path, *, config: Path | None, flags: dict[str, Any]) -> None:
    """Run every role from ``state`` until SIGINT or SIGTERM."""
    # Our children exec at once and never speak gRPC; its handlers for forks would only say so, at
    # each of them, on stderr.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    settings = read(state, file=config, flags=flags).values
    formats = {"json": True, "text": False}
    logs.configure(settings.log.level, json=formats.get(settings.log.format))
    folder = StateFolder(state)
    folder.open()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(folder, settings))
    finally:
        folder.close()


async def _serve(folder: StateFolder, settings: Settings) -> None:
    from leasehold.app.up import Provider

    provider = Provider(folder, settings)
    group = Group([provider], "leasehold")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, group.request_stop)

    async def announce() -> None:
        await provider._started.wait()
        write_running(folder.path, _running(provider))
        if sys.stderr.isatty():
            print(
                f"\nready: {provider.gateway.url}  (Ctrl-C stops; workloads go on)", file=sys.stderr
            )

    announcing = asyncio.ensure_future(announce())
    try:
        await group.serve()
    finally:
        announcing.cancel()


def _running(provider: Any) -> Running:
    return Running(
        pid=os.getpid(),
        gateway=provider.gateway.url,
        ledger=provider.market_url,
        ingress=provider.ingress_url,
        ops=f"http://{provider.ops.settings.host}:{provider.ops.port}",
        provider=provider.address,
        state=str(provider.folder.path),
    )


def _loop_factory() -> Any:
    import uvloop

    return uvloop.new_event_loop
