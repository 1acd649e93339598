"""A machine that is given up: ``provider clear`` takes off what a stopped provider left running."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from leasehold.app import debris
from leasehold.app.demo.example import example
from leasehold.app.demo.flow import HOST, Demo
from leasehold.app.tenant import first_answer
from leasehold.core.clock import SystemClock
from leasehold.core.service import running


@pytest.mark.timeout(180)
async def test_clear_leaves_nothing_whatever_was_killed(run_leasehold: Callable[..., Any]):
    """Stopped in peace, and with the provider and both keepers killed.

    With the node's keeper's journal left in place, a second ``clear`` finds services again.
    """
    demo = Demo(example())
    state = demo.folder / "provider"

    async def provider(*words: str) -> Any:
        words = ("provider", *words, "--state", str(state))
        return await asyncio.to_thread(run_leasehold, *words)

    async with running(demo):
        try:
            await demo.play()
            refused = await provider("clear", "--yes")
            assert refused.code == 5 and "state_in_use" in refused.err
            await demo._stop_provider()
            assert (await ask(demo.result.url)).endswith("start number 1")
            assert (await provider("clear")).code == 2, "it asks first"

            cleared = await provider("clear", "--yes")
            assert cleared.code == 0, cleared
            assert "a replica of" in cleared.out and "3 services" in cleared.out
            assert "1 lease is still open" in cleared.out
            assert debris.find(demo.folder / "provider", mark=demo.mark) == []
            with pytest.raises(httpx.ConnectError):
                await ask(demo.result.url)
            assert "nothing" in (await provider("clear", "--yes")).out

            found = await demo.start_provider()  # the volume is still there
            said = (await first_answer(found.ingress, host=HOST, clock=SystemClock()))[1]
            assert said.endswith("start number 2")

            workloads = control_groups(demo.mark)
            assert workloads
            for pid in (found.pid, *keepers(state)):
                os.kill(pid, signal.SIGKILL)
            await demo._process.wait()
            purged = await provider("clear", "--purge", "--yes", "--json")
            assert purged.code == 0, purged
            assert json.loads(purged.out)["left"] == []
            assert debris.find(state, mark=demo.mark) == []
            assert not workloads & {p.name for p in Path("/proc").iterdir()}
            assert not state.exists()
        finally:
            await demo.clean()
    assert demo.result.left == []
    shutil.rmtree(demo.folder, ignore_errors=True)


async def ask(url: str) -> str:
    async with httpx.AsyncClient(trust_env=False) as http:
        return (await http.get(url, headers={"Host": HOST})).text.strip()


def keepers(state: Path) -> list[int]:
    """The processes that keep workloads and services, of the provider in ``state``."""
    wanted = (f"{state}/deploy/keeper", f"{state}/node")
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may end while we look
            words = (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            if words[-1].decode(errors="replace") in wanted:
                found.append(int(process.name))
    assert len(found) == 2, found
    return found


def control_groups(mark: str) -> set[str]:
    """Ids of the processes in the control groups of the workloads."""
    return {
        pid
        for group in Path("/sys/fs/cgroup").glob(f"*/{mark}/**/cgroup.procs")
        for pid in group.read_text().split()
    } | {
        pid
        for group in Path("/sys/fs/cgroup").glob(f"{mark}/**/cgroup.procs")
        for pid in group.read_text().split()
    }
