"""A node in a process of its own, for ``bench boot``: says when everything is deployed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from bench._boot_packages import SETTINGS, package
from leasehold.core import logs
from leasehold.core.service import running
from leasehold.node.service import Node
from leasehold.node.settings import SystemServices

logs.configure("error")


async def main(root: Path, count: int) -> None:
    node = Node(
        root,
        settings=SETTINGS,
        system_services=SystemServices(enable=()),
        packages=[package(n, spell=False) for n in range(count)],
    )
    async with running(node):
        await node.deployed.wait()
        print("deployed", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await node.remove_everything()


asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
