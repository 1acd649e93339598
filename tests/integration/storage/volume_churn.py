"""Freezes, archives, brings back and moves one volume for ever. Made to be killed.

``python volume_churn.py FOLDER``: says ``ready`` once the volume exists and ``did X`` after each.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from pathlib import Path

from leasehold.core.service import running
from leasehold.events.event import Entity
from leasehold.events.sqlite import SqliteLog
from leasehold.observe.engine import Engine
from leasehold.storage.volumes import Volumes

STEPS = {"online": "freeze", "frozen": "archive", "archived": "unarchive"}


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


async def idle(volumes: Volumes, repo: str) -> None:
    async for _ in volumes.log.read(Entity("repo", repo), watch=True):
        state = await volumes.repos.repos.state(repo)
        registry = await volumes.repos.registries.state("local")
        if state.shadow_path and not state.busy and not registry.repos[repo].move:
            return


async def main() -> None:
    folder = Path(sys.argv[1])
    async with running(SqliteLog(folder / "log.db")) as log:
        engine = Engine(log)
        volumes = Volumes(folder / "volumes", log, engine)
        async with running(volumes), running(engine):
            registry = await volumes.repos.registries.state("local")
            if not registry.repos:
                place = await volumes.ensure("acme", 1, "web", "data", 1 << 20)
                for n in range(200):
                    (place / str(n)).write_bytes(b"%d" % n * 1000)
                volumes.in_use.clear()
                registry = await volumes.repos.registries.state("local")
            (repo,) = registry.repos
            say("ready")
            for n in itertools.count():
                await idle(volumes, repo)
                state = await volumes.repos.repo(repo)
                if n % 3 == 2 and state.tier != "archived":
                    await volumes.move(repo, f"leases/acme/{n}/web/data{os.getpid()}")
                elif n % 5 == 4 and state.tier == "frozen":
                    await volumes.change("unfreeze", repo, author="x")
                else:
                    await volumes.change(STEPS[state.tier], repo, author="x")
                await idle(volumes, repo)
                say(f"did {n}")


asyncio.run(main())
