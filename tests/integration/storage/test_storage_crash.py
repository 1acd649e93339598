"""SIGKILL while a volume is frozen, archived, brought back and moved: it is in one place, whole."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
from pathlib import Path

import pytest

from leasehold.core.service import running
from leasehold.events.event import Entity
from leasehold.events.sqlite import SqliteLog
from leasehold.observe.engine import Engine
from leasehold.storage import immutable
from leasehold.storage.volumes import Volumes

CHURN = Path(__file__).with_name("volume_churn.py")
STEPS = Path(__file__).with_name("volume_steps.py")
KILLS = 5


def churn(folder: Path, seconds: float) -> None:
    """Run it until it is ready, then that much longer, then SIGKILL it."""
    process = subprocess.Popen(
        [sys.executable, CHURN, folder], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    process.wait()
    process.stdout.close()


async def check(folder: Path) -> None:
    async with running(SqliteLog(folder / "log.db")) as log:
        engine = Engine(log)
        volumes = Volumes(folder / "volumes", log, engine)
        async with running(volumes), running(engine):
            ((repo, _),) = await volumes.of()
            async with asyncio.timeout(30):
                async for _ in log.read(Entity("repo", repo), watch=True):
                    state = await volumes.repos.repos.state(repo)
                    registry = await volumes.repos.registries.state("local")
                    if not state.busy and not registry.repos[repo].move:
                        break
                await volumes.storage.wait_enabled(repo)
            assert not state.error
            _, dseq, service, volume = state.path.split("/")[1:]
            place = await volumes.ensure("acme", int(dseq), service, volume, 1 << 20)
            assert await volumes.find(state.path) == repo
            files = volumes.storage.layout.files
            holders = {path.parent for path in files.rglob("199")}
            assert holders == {place}, "in exactly one place"
            for n in range(200):
                assert (place / str(n)).read_bytes() == b"%d" % n * 1000


async def test_a_volume_survives_sigkill_at_any_moment(tmp_path: Path) -> None:
    rng = random.Random(7)
    try:
        for _ in range(KILLS):
            await asyncio.to_thread(churn, tmp_path, rng.uniform(0.05, 1.0))
            await check(tmp_path)
    finally:
        immutable.set_tree(tmp_path / "volumes", False)


@pytest.mark.parametrize("action", ["freeze", "archive", "unarchive", "move"])
def test_a_kill_at_every_step_of_a_change(action: str, tmp_path: Path) -> None:
    """With the look at what an earlier try has done taken out of ``moves._switch``, or the one at
    the old files out of ``unarchive_repo``, this names the step."""
    done = subprocess.run(
        [sys.executable, STEPS, tmp_path, action], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout.decode()
    assert int(done.stdout.split()[-2]) > 10, "it has not counted its steps"


@pytest.mark.soak
async def test_many_kills(tmp_path: Path) -> None:
    rng = random.Random()
    try:
        for _ in range(40):
            await asyncio.to_thread(churn, tmp_path, rng.uniform(0.0, 0.6))
            await check(tmp_path)
    finally:
        immutable.set_tree(tmp_path / "volumes", False)
