"""Kills itself at every step of a change of a volume, one after the other. Made for a test.

``python volume_steps.py FOLDER ACTION``: for n = 1, 2, …: a fork begins ACTION (freeze,
archive, unarchive, move) on a fresh volume and is killed by SIGKILL at the nth step it takes (a
change of a name or mode in the file system, or an append to the log); another fork starts again
and must find the change done, the volume whole and in one place. Ends when a fork came through.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

from leasehold.core import logs
from leasehold.core.service import running
from leasehold.events.sqlite import SqliteLog
from leasehold.observe.engine import Engine
from leasehold.storage import immutable
from leasehold.storage.volumes import Volumes

STEPS = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.chown", "shutil.rmtree"}
BEFORE = {"freeze": [], "archive": ["freeze"], "unarchive": ["freeze", "archive"], "move": []}
AFTER = {"freeze": "frozen", "archive": "archived", "unarchive": "frozen", "move": "online"}
FILES = {"a": b"one", "d/b": b"two" * 1000, "d/e/c": b""}
OLD, NEW = "leases/acme/1/web/data", "leases/acme/2/db/pg"

PATIENCE = 30.0
"""Seconds for one of it."""

left = -1
"""Steps until the end; below zero for ever."""


def step(event: str = "", _args: object = None) -> None:
    global left
    if not event or event in STEPS:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


async def change(volumes: Volumes, repo: str, action: str) -> None:
    if action == "move":
        await volumes.move(repo, NEW)
    else:
        await volumes.change(action, repo, author="me")


async def settled(volumes: Volumes, repo: str) -> None:
    """The repo's history and the registry's both say that nothing is under way."""
    while True:
        state = await volumes.repos.repos.state(repo)
        listed = (await volumes.repos.registries.state("local")).repos[repo]
        if state.shadow_path and not state.busy and not listed.move:
            return
        await asyncio.sleep(0.01)


async def work(folder: Path, action: str, at: int) -> None:
    """The whole of it, up to the step; ``at`` 0: only what is left to do."""
    global left
    async with running(SqliteLog(folder / "log.db")) as log:
        engine = Engine(log)
        volumes = Volumes(folder / "volumes", log, engine)
        async with running(volumes), running(engine):
            if at:
                place = await volumes.ensure("acme", 1, "web", "data", 1 << 20)
                for name, data in FILES.items():
                    (place / name).parent.mkdir(exist_ok=True)
                    (place / name).write_bytes(data)
                volumes.in_use.clear()
            (repo,) = (await volumes.repos.registries.state("local")).repos
            if at:
                for earlier in BEFORE[action]:
                    await change(volumes, repo, earlier)
                    await settled(volumes, repo)
                append = log.append

                async def counted(*args: object, **more: object) -> object:
                    step()
                    return await append(*args, **more)  # type: ignore[arg-type]

                log.append = counted  # type: ignore[method-assign, assignment]
                left = at
            async with asyncio.timeout(PATIENCE):
                await settled(volumes, repo)
                state = await volumes.repos.repo(repo)
                if (state.tier, state.path) != (AFTER[action], NEW if action == "move" else OLD):
                    await change(volumes, repo, action)  # the word had not reached the log
                    await settled(volumes, repo)
                left = -1
                await whole(volumes, repo, action)


async def whole(volumes: Volumes, repo: str, action: str) -> None:
    state = await volumes.repos.repo(repo)
    path = NEW if action == "move" else OLD
    assert (state.tier, state.path, state.error) == (AFTER[action], path, ""), state
    layout = volumes.storage.layout
    places: list[Path] = []
    for _ in range(200):  # what is deleted afterwards
        with contextlib.suppress(FileNotFoundError):  # just now
            places = [p for p in layout.files.glob("*/*/*/*/*") if p.is_dir()]
        if len(places) == 1 and not list(layout.staging.glob("gone.*")):
            break
        await asyncio.sleep(0.02)
    assert places == [layout.files / path], places
    assert [p.name for p in layout.shadows.iterdir()] == [Path(state.shadow_path).name]
    if state.tier == "archived":
        assert not list(places[0].iterdir())
        await volumes.change("unarchive", repo, author="me")
        await settled(volumes, repo)
    found = {
        str(p.relative_to(places[0])): p.read_bytes() for p in places[0].rglob("*") if p.is_file()
    }
    assert found == FILES, found.keys()
    newest = await volumes.storage.listing(repo)
    assert {p for p, r in newest if r.type == "f"} == (FILES.keys() if action != "move" else set())


def forked(folder: Path, action: str, at: int) -> int:
    """What became of it: an exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            asyncio.run(work(folder, action, at))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    logs.configure("critical")
    base, action = Path(sys.argv[1]), sys.argv[2]
    sys.addaudithook(step)
    n = 1
    while True:
        folder = base / f"{action}{n}"
        folder.mkdir()
        came_through = forked(folder, action, n)
        if came_through not in (0, -signal.SIGKILL):
            raise SystemExit(f"{action}, step {n}: the first process ended with {came_through}")
        if came_through and forked(folder, action, 0):
            raise SystemExit(f"{action}, step {n}: not as it was after a kill there")
        immutable.set_tree(folder, False)
        shutil.rmtree(folder)
        if not came_through:
            print(f"{action}: killed at each of {n - 1} steps", flush=True)
            return
        n += 1


main()
