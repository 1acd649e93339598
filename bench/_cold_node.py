"""One node of a cold start: ``name seed folder members registry``, commands on stdin.

``pull REFERENCE`` fetches manifest, config and layers (nothing is unpacked: that costs every node
the same, whatever the source) and prints what came from where as a line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sys
import time
from pathlib import Path

import msgspec
import uvloop

from leasehold.core.logs import configure
from leasehold.core.service import running
from leasehold.images.assembly import Assembly, Teller
from leasehold.images.membership import FileMembers
from leasehold.images.node import ImagesNode
from leasehold.images.ports import ContentKind
from leasehold.images.settings import ImagesSettings, Registry
from leasehold.model.digest import Digest
from leasehold.model.reference import Reference
from leasehold.p2p.keys import KeyPair
from leasehold.p2p.settings import P2PSettings

ACQUAINTED = 20.0
"""Seconds a node may take to get to know all others: measured is a fleet that has been up."""


def keys_of(name: str) -> KeyPair:
    return KeyPair.from_seed(hashlib.sha256(name.encode()).digest())


async def main(name: str, folder: str, members: str, registry: str) -> None:
    table = {m["node"]: m for m in json.loads(Path(members).read_text())}
    me = table[name]
    settings = ImagesSettings(
        registries=(Registry(name=registry),),
        transfer_host="127.0.0.1",
        transfer_port=int(me["transfer"].rpartition(":")[2]),
        fsync=False,
    )
    node = ImagesNode(
        Path(folder),
        name,
        settings=settings,
        p2p=P2PSettings(listen=[me["addresses"][0].partition("/p2p/")[0]]),
        members=FileMembers(Path(members)),
        keys=keys_of(name),
        mirror=False,
    )
    loop = asyncio.get_running_loop()
    async with running(node):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ACQUAINTED):
                while len(node.kad.table) < len(table) - 1:  # noqa: ASYNC110  (tells nobody)
                    await asyncio.sleep(0.05)
        print(json.dumps({"ready": name}), flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            command, _, argument = line.strip().partition(" ")
            if command == "pull":
                print(json.dumps(await pull(node, argument)), flush=True)


async def pull(node: ImagesNode, text: str) -> dict[str, object]:
    began = time.time()
    images = node.images
    reference = Reference.parse(text)
    job = Assembly(images, reference, None, Teller(None))
    try:
        digest = await images.resolve(reference, None)
        _, manifest = await job.manifest(digest)
        await job.small(manifest.config, ContentKind.CONFIG)
        async with asyncio.TaskGroup() as tasks:
            for layer in manifest.layers:
                tasks.create_task(
                    job.have(Digest.parse(layer.digest), ContentKind.BLOB, layer.size)
                )
    except Exception as error:
        return {"node": node.node, "error": repr(error), "causes": repr(error.__cause__)}
    usage = Path("/proc/self/statm").read_text().split()
    return {
        "node": node.node,
        "began": began,
        "ended": time.time(),
        "sources": job.sources(),
        "rss_mib": int(usage[1]) * 4096 / 2**20,
        "parts": msgspec.to_builtins(job.parts),
    }


if __name__ == "__main__":
    configure("error")
    uvloop.run(main(*sys.argv[1:]))
