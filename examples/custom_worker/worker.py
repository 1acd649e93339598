"""A worker of your own: python worker.py 127.0.0.1:8085 (where a manager's HTTP listens)."""

import asyncio
import sys
from collections.abc import AsyncIterator

from leasehold.dispatch.settings import DispatchSettings
from leasehold.dispatch.worker import Job, Reply, Worker

worker = Worker(
    settings=DispatchSettings(
        network="mine", chain_id="mine-1", worker_port=0, managers=tuple(sys.argv[1:])
    )
)


@worker.task("Countdown", timeout=60.0)
async def countdown(job: Job) -> AsyncIterator[Reply]:
    """Each reply reaches the caller as it is made; an exception would be the task's error."""
    for n in range(int(job.payload), 0, -1):
        yield Reply("Number", str(n).encode())
        await asyncio.sleep(0.01)


if __name__ == "__main__":
    worker.run()
