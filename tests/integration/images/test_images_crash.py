"""SIGKILL at any moment of a pull: nothing half-made is ever taken for whole."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from leasehold.images import build


async def images(state: Path, *args: str, kill_after: float | None = None) -> Any:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "leasehold", "images", *args, "--state", str(state), "--json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    if kill_after is not None:
        # Counted from the lock file: imports take a machine-dependent time, the pull does not.
        lock = state / "images/lock"
        while not lock.exists() and process.returncode is None:
            await asyncio.sleep(0.005)
        await asyncio.sleep(kill_after)  # the moment of the crash is what the test varies
        if process.returncode is None:
            process.kill()
        await process.communicate()
        lock.unlink(missing_ok=True)
        return None
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return json.loads(out)


async def test_killed_at_random_moments(registry: Any, tmp_path: Path) -> None:
    rng = random.Random(11)
    files: dict[str, Any] = {f"d{i % 7}/f{i}": rng.randbytes(40_000) for i in range(400)}
    built = build.busybox(files)
    name = await build.push(built, registry.host, "crash/app", "1")
    state = tmp_path / "state"
    for _ in range(5):
        await images(state, "pull", name, kill_after=rng.uniform(0.0, 0.8))
    whole = await images(state, "pull", name)
    assert whole["layers"] == 2
    verified = await images(state, "verify")
    assert verified["bad"] == [] and verified["good"] == 4
    explained = await images(state, "explain", name)
    trees = [tmp_path / "state/images/layers" / layer for layer in explained["layers"]]
    for path, content in files.items():
        assert (trees[1] / path).read_bytes() == content, path
    kept = set(os.listdir(tmp_path / "state/images/layers"))
    assert kept == {name for t in trees for name in (t.name, t.name + ".json")}, "no leftovers"
    assert os.listdir(tmp_path / "state/images/store/tmp") == []
