"""How fast a node has its packages in place.

``value``: milliseconds from the node's parts running to all 100 packages (each with a service,
every fifth with a spell) found unchanged, over restarts. Beside it: one of the 100 changed, until
the new service answers and the old one is gone; and a cold install of 20 process services, in turn
with supervisor and circus starting the same 20 programs. All three are started as a new process,
with nothing installed, and timed until every program answers a request on its socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import harness
from bench._boot_packages import SETTINGS, package
from leasehold.core import logs
from leasehold.core.service import running
from leasehold.node.service import Node
from leasehold.node.settings import SystemServices
from leasehold.node.supervisor import ROOT
from leasehold.node.testing import deployed, end_keeper

PACKAGES = 100
COLD = 20
COLD_RUNS = 5
RESTARTS = 7


def run(quick: bool) -> dict[str, Any]:
    logs.configure("error")
    return asyncio.run(_run(quick))


async def _run(quick: bool) -> dict[str, Any]:
    unchanged, changed, install = await _hundred(quick)
    cold: dict[str, list[float]] = {"leasehold": [], "supervisor": [], "circus": []}
    errors: dict[str, str] = {}
    for _ in range(3 if quick else COLD_RUNS):
        for name, start in (("leasehold", _ours), ("supervisor", _supervisor), ("circus", _circus)):
            try:
                cold[name].append(await asyncio.to_thread(start))
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                errors[name] = str(error)
    medians = {name: harness.median(v) * 1000 for name, v in cold.items() if v}
    peers = [medians[name] for name in ("supervisor", "circus") if name in medians]
    for name, value in medians.items():
        print(f"cold start of {COLD} by {name}: {value:.0f} ms", file=sys.stderr)
    return harness.result(
        "boot",
        unchanged,
        "ms",
        peer="",
        peer_value=None,
        higher_is_better=False,
        aim="< 300 ms for 100 unchanged packages, < 1000 ms for one changed, cold start ratio < 1",
        packages=PACKAGES,
        install_100_ms=round(install),
        change_one_ms=round(changed, 1),
        cold_install_20_ms=round(medians["leasehold"], 1),
        cold_peers_ms={k: round(v, 1) for k, v in medians.items() if k != "leasehold"},
        cold_ratio_to_fastest=round(medians["leasehold"] / min(peers), 3) if peers else None,
        peer_error=errors or None,
    )


async def _hundred(quick: bool) -> tuple[float, float, float]:
    root = Path(tempfile.mkdtemp(prefix="bench-boot-"))
    wanted = {f"package-{n}": package(n) for n in range(PACKAGES)}
    try:
        boots, changes, install = [], [], 0.0
        for turn in range((3 if quick else RESTARTS) + 1):
            node = Node(
                root,
                settings=SETTINGS,
                system_services=SystemServices(enable=()),
                packages=list(wanted.values()),
            )
            async with running(node):
                await deployed(node)
                assert node.boot_ms is not None
                states = {r.status for r in node.deployer.results.values()}
                if turn == 0:
                    install = node.boot_ms
                    continue
                assert states == {"unchanged"}, states
                boots.append(node.boot_ms)
                wanted["package-7"] = package(7, turn + 1)
                node.extra = dict(wanted)
                began = time.perf_counter()
                results = await node.reload()
                changes.append((time.perf_counter() - began) * 1000)
                assert results["package-7"].changes == ["replaced service-7"]
                reply = await node.call("service-7", "version", [])
                assert reply["value"] == turn + 1
        print(f"unchanged: {[round(b, 1) for b in boots]} ms", file=sys.stderr)
        print(f"one changed: {[round(c, 1) for c in changes]} ms", file=sys.stderr)
        return harness.median(boots), harness.median(changes), install
    finally:
        await end_keeper(root)
        shutil.rmtree(root, ignore_errors=True)


def _ours() -> float:
    root = Path(tempfile.mkdtemp(prefix="bench-cold-"))
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench._boot_node", str(root), str(COLD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"deployed\n":
            raise RuntimeError("the node did not come up")
        took = time.perf_counter() - began
        sockets = list((root / "services").glob("*/socket"))
        assert len(sockets) == COLD
        for path in sockets:
            _ask(path)
        return took
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()
        shutil.rmtree(root, ignore_errors=True)


def _supervisor() -> float:
    root, command, env = _programs()
    programs = "".join(
        f"[program:p{n}]\ncommand={command}\nstartsecs=0\n"
        f'environment={env},LEASEHOLD_SOCKET="{root}/{n}.sock"\n'
        for n in range(COLD)
    )
    (root / "supervisord.conf").write_text(
        f"[supervisord]\nnodaemon=true\nlogfile={root}/log\npidfile={root}/pid\n"
        f"childlogdir={root}\n{programs}"
    )
    exe = Path(sys.executable).parent / "supervisord"
    return _until_all_answer(root, [str(exe), "-c", str(root / "supervisord.conf")])


def _circus() -> float:
    root, command, env = _programs()
    pairs = dict(part.split("=", 1) for part in env.split(","))
    watchers = "".join(
        f"[watcher:p{n}]\ncmd={command}\nnumprocesses=1\n"
        f"[env:p{n}]\nLEASEHOLD_SOCKET={root}/{n}.sock\n"
        + "".join(f"{key}={json.loads(value)}\n" for key, value in pairs.items())
        for n in range(COLD)
    )
    (root / "circus.ini").write_text(
        f"[circus]\nendpoint=ipc://{root}/c1\npubsub_endpoint=ipc://{root}/c2\n{watchers}"
    )
    exe = Path(sys.executable).parent / "circusd"
    return _until_all_answer(root, [str(exe), str(root / "circus.ini")])


def _programs() -> tuple[Path, str, str]:
    """The same program our packages run, its command and its environment."""
    root = Path(tempfile.mkdtemp(prefix="bench-peer-", dir="/tmp"))
    for name, data in package(1).services[0].artifacts.items():
        (root / name).write_bytes(data)
    return root, f"{sys.executable} -S {root}/service.py", f'PYTHONPATH="{ROOT}",LANG="C.UTF-8"'


def _until_all_answer(root: Path, command: list[str]) -> float:
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=root
    )
    try:
        for n in range(COLD):
            _ask(root / f"{n}.sock")
        return time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(root, ignore_errors=True)


def _ask(path: Path, seconds: float = 20.0) -> None:
    """Call ``system.ready`` until it is answered."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(str(path))
            sock.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "system.ready"}\n')
            if b"success" in sock.recv(4096):
                return
        time.sleep(0.002)
    raise RuntimeError(f"{path} does not answer; pid {os.getpid()}")
