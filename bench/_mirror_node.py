"""A node's image mirror in a process of its own: ``folder registry``; prints its URL."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop

from leasehold.core.logs import configure
from leasehold.core.service import running
from leasehold.images.service import Images
from leasehold.images.settings import ImagesSettings, Registry


async def main(folder: str, registry: str) -> None:
    settings = ImagesSettings(registries=(Registry(name=registry),), mirror_port=0)
    async with running(Images(Path(folder), settings=settings, mirror=True)) as node:
        assert node.mirror_server is not None
        print(node.mirror_server.url, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


configure("error")
uvloop.run(main(*sys.argv[1:]))
