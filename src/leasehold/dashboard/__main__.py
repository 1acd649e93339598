"""The dashboard's process: ``python -m leasehold.dashboard``, started by the gateway's front door.

It says one line on standard output when it answers, and ends when its standard input does. It steps
back behind the provider: lower priority, and the first to go when memory runs out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from pathlib import Path

from leasehold.core import logs
from leasehold.core.clock import SystemClock
from leasehold.core.service import running
from leasehold.core.web import HttpServer

NICENESS = 5
EXPENDABLE = "500"
"""Of 1000: how gladly the kernel ends this process when memory runs out."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m leasehold.dashboard", description=__doc__)
    parser.add_argument("--pages", type=Path, required=True, help="socket to serve pages on")
    parser.add_argument("--api", type=Path, required=True, help="socket of the gateway's API")
    parser.add_argument("--ledger", required=True, help="the market's RPC")
    parser.add_argument("--sessions", type=Path, required=True, help="folder of sealed sessions")
    arguments = parser.parse_args()
    logs.configure("warning")
    os.nice(NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(EXPENDABLE)
    # NiceGUI would keep a folder of its own where it was started.
    os.environ.setdefault("NICEGUI_STORAGE_PATH", str(arguments.sessions))
    asyncio.run(serve(arguments))


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until standard input ends."""
    from leasehold.dashboard.server import application
    from leasehold.dashboard.sessions import Sessions

    clock = SystemClock()
    sessions = Sessions(arguments.sessions)
    web = application(arguments.api, arguments.ledger, sessions, clock)
    server = HttpServer(
        web, path=arguments.pages, name="dashboard", clock=clock, lifespan="on",
        server_header=False, proxy_headers=False, ws="websockets-sansio",
    )  # fmt: skip
    async with running(server):
        print("ready", flush=True)
        await _end_of_input()


async def _end_of_input() -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def readable() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            loop.remove_reader(sys.stdin.fileno())
            ended.set()

    loop.add_reader(sys.stdin.fileno(), readable)
    await ended.wait()


if __name__ == "__main__":
    main()
