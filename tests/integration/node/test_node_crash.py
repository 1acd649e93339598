"""SIGKILL at the steps of a deploy of 20 packages: the next boot converges, nothing is left over.

``make soak`` kills at every single step; the ordinary run at every ninth.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from leasehold.node.cgroups import Hierarchies, key_of
from leasehold.node.distro import InitCall, PackageDistro, ServiceDistro, SpellDistro
from leasehold.node.journal import ROOT_SCOPE
from leasehold.node.service import Node
from leasehold.node.settings import NodeSettings
from leasehold.node.spells.trigger import ClockConfig, TriggerConfig
from leasehold.node.testing import node_in, python_service

SETTINGS = NodeSettings(
    health_sec=0, allow_downgrade=True, spell_workers=1, parallel_packages=4, settle_sec=0
)

CHILD = """
import asyncio, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_node_crash import SETTINGS, packages
from leasehold.core import logs
from leasehold.core.service import running
from leasehold.node.service import Node
from leasehold.node.testing import NOTHING_BUNDLED, deployed

logs.configure("error")

async def deploy(kill_at, version):
    steps = 0
    def step(package, what):
        nonlocal steps
        steps += 1
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
    node = Node(Path(sys.argv[1]), settings=SETTINGS, packages=packages(version),
                system_services=NOTHING_BUNDLED, on_step=step)
    async with running(node):
        await deployed(node)
    print(steps, flush=True)

for line in sys.stdin:
    kill_at, version = map(int, line.split())
    child = os.fork()
    if child == 0:
        asyncio.run(deploy(kill_at, version))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print("killed" if os.WIFSIGNALED(status) else f"ended {status}", flush=True)
"""


def packages(version: int) -> list[PackageDistro]:
    """20 packages of all sorts; every one differs between versions 0 and 1."""
    made = []
    for n in range(20):
        service = ServiceDistro(
            name=f"svc-{n}", run=("sleep", f"{1000 + version}"), ready="started"
        )
        init = None
        if n % 10 == 0:
            service = python_service(f"svc-{n}", f"@service.function\ndef v(): return {version}")
            init = (InitCall(f"svc-{n}.v"),)
        spell = SpellDistro(
            name=f"spell-{n}",
            script=f"print({version})",
            kv={"version": version},
            trigger=TriggerConfig(ClockConfig(1, 0, 3600)),
        )
        spells = (spell,) if n % 4 == 0 else ()
        after = (f"p{n - 1}",) if n % 5 == 4 else ()
        made.append(
            PackageDistro(
                name=f"p{n}",
                version=f"{version}.0.0",
                services=(service,),
                spells=spells,
                init=init,
                after=after,
            )
        )
    return made


def kill_points(every: int) -> range:
    return range(1, 2000, every)


@pytest.mark.timeout(300)
async def test_sigkill_at_every_ninth_step(tmp_path: Path) -> None:
    await storm(tmp_path, 9)


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_sigkill_at_every_step(tmp_path: Path) -> None:
    await storm(tmp_path, 1)


def spawn(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root), str(Path(__file__).parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


async def storm(root: Path, every: int) -> None:
    child = spawn(root)
    assert child.stdin is not None
    assert child.stdout is not None
    kills = 0
    try:
        for turn, kill_at in enumerate(kill_points(every)):
            version = turn % 2
            print(kill_at, version, file=child.stdin, flush=True)
            outcome = child.stdout.readline().strip()
            if outcome != "killed":
                assert int(outcome) < kill_at  # The whole deploy has fewer steps than that.
                break
            kills += 1
            async with node_in(root, *packages(version), settings=SETTINGS, keep=True) as node:
                await check(node, version)
    finally:
        child.stdin.close()
        child.wait(timeout=30)
        async with node_in(root, settings=SETTINGS) as node:
            assert not node.journal.instances
        child.stdout.close()
    assert kills > 150 // every
    assert not Hierarchies(key_of(str(root))).ids()


async def check(node: Node, version: int) -> None:
    """Exactly what should be there: instances, aliases, processes, groups, directories, data."""
    results = node.deployer.results
    assert {r.status for r in results.values()} <= {"ready", "unchanged"}
    instances = node.journal.instances
    assert len(instances) == 25
    assert {i.state for i in instances.values()} == {"live"}
    assert len(node.journal.aliases) == 25
    assert {scope for scope, _ in node.journal.aliases} == {ROOT_SCOPE}
    processes = {i.id for i in instances.values() if not i.is_spell}
    states = await node.supervisor.refresh()
    assert set(states) == processes
    assert {s.state for s in states.values()} == {"running"}
    assert set(node.services.on_disk()) == processes
    assert node.spells.on_disk() == {i.id for i in instances.values() if i.is_spell}
    groups = Hierarchies(key_of(str(node.root))).ids()
    assert groups in (processes, set())
    for state in states.values():
        command = Path(f"/proc/{state.pid}/cmdline").read_bytes()
        assert b"sleep" not in command or f"{1000 + version}".encode() in command
    sleeping = [
        pid for pid in os.listdir("/proc") if pid.isdigit() and _belongs(pid, str(node.root))
    ]
    assert {int(pid) for pid in sleeping} == {s.pid for s in states.values()}
    for n in (0, 10):
        assert (await node.call(f"svc-{n}", "v", []))["value"] == version
    for n in range(0, 20, 4):
        keys = await node.spells.use(node.find(f"spell-{n}", spell=True).id, lambda s: s.dump())
        assert keys["version"]["value"] == str(version)


def _belongs(pid: str, root: str) -> bool:
    """Whether a process was started as a service of the node in ``root``."""
    process = Path("/proc", pid)
    try:
        if f"LEASEHOLD_DATA={root}".encode() in (process / "environ").read_bytes():
            return True
        # A script in the keeper's interpreter has the keeper's first environment.
        return f"\0-S\0{root}/".encode() in (process / "cmdline").read_bytes()
    except OSError:
        return False
