"""A provider as a process of its own, to be killed: ``provider_process.py FOLDER LAYER CGROUP``.

Prints the ingress port once it is up; the manifests come from the log it shares with the test,
which appends them before it starts this.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from conftest_deploy import FakeImages, FakeMarket, FakeVolumes, Machine, settings_for

from leasehold.core import logs


async def main(folder: Path, layer: Path, cgroup: str) -> None:
    machine = Machine(
        folder,
        settings_for(cgroup),
        FakeImages(layer),
        FakeVolumes(folder / "volumes"),
        FakeMarket(),
    )
    async with machine.provider() as provider:
        print(provider.deploy.ingress.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    logs.configure("warning")
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
