"""A Python service out of the keeper's interpreter is a process like any other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from leasehold.node.distro import Limits, PackageDistro, Restart
from leasehold.node.keeper.script import can_run
from leasehold.node.settings import NodeSettings
from leasehold.node.testing import node_in, python_service, until

SOURCE = """
import os, signal, sys, threading
print("raw", end="")
@service.function
def look():
    return {
        "argv": sys.argv, "main": __name__, "path": sys.path, "env": dict(os.environ),
        "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
        "command": open("/proc/self/cmdline").read().split(chr(0)),
        "keeper": [name for name in sys.modules if "keeper" in name],
        "int": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "threads": threading.active_count(), "leader": os.getsid(0) == os.getpid(),
        "stdin": sys.stdin.read(), "files": __import__("resource").getrlimit(7)[0],
    }
@service.function
def leave(code): sys.exit(code)
@service.function
def fork():
    pid = os.fork()
    if not pid: os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""
SETTINGS = NodeSettings(health_sec=0, deploy_attempts=1)


def package(source: str, **fields: Any) -> PackageDistro:
    return PackageDistro(
        name="p", config={"a": 1}, services=(python_service("svc", source, **fields),)
    )


async def test_nothing_of_the_keeper_is_seen(tmp_path: Path) -> None:
    limits = Limits(files=99)
    async with node_in(tmp_path, package(SOURCE, env={"OWN": "1"}, limits=limits)) as node:
        state = node.supervisor.states[node.find("svc", spell=False).id]
        assert can_run([*_command(state.pid)[:2], "/x"])
        seen = await node.call("svc", "look", [])
        [script] = seen["argv"]
        assert Path(script).name == "service.py"
        assert seen["path"][0] == str(Path(script).parent)
        assert seen["command"][:2] == [sys.executable, "-S"]
        assert (seen["main"], seen["keeper"], seen["stdin"]) == ("__main__", [], "")
        assert seen["env"]["OWN"] == "1"
        assert seen["env"]["LEASEHOLD_CONFIG"] == '{"a":1}'
        assert {name for name in seen["env"] if name.startswith("LC_")} == set()
        # Standard descriptors, the listener, its selector, the caller, and the listing itself.
        assert seen["fds"] == list(range(len(seen["fds"])))
        assert len(seen["fds"]) <= 7
        assert (seen["int"], seen["threads"], seen["leader"]) == (True, 1, True)
        assert seen["files"] == 99
        assert (await node.call("svc", "fork", []))["value"] == 7
        instance = node.find("svc", spell=False)
        await until(lambda: node.services.logs(instance) == ["raw"])


@pytest.mark.parametrize(
    ("source", "said", "code"),
    [
        ("raise SystemExit(3)", "", 3),
        ("raise SystemExit('no configuration')", "no configuration", 1),
        ("1 / 0", "ZeroDivisionError: division by zero", 1),
        ("import nothing_there", "ModuleNotFoundError: No module named 'nothing_there'", 1),
        ("def broken(", "SyntaxError: '(' was never closed", 1),
        ("import os; os.kill(os.getpid(), 15)", "", -15),
    ],
)
async def test_how_it_ends_is_told(tmp_path: Path, source: str, said: str, code: int) -> None:
    never = Restart(policy="never")
    async with node_in(tmp_path, package(source, restart=never), settings=SETTINGS, keep=True) as n:
        result = n.deployer.results["p"]
        assert result.status == "failed"
        assert said in result.message
        spec = {
            "argv": [sys.executable, "-S", str(tmp_path / "again.py")],
            "env": {}, "cwd": str(tmp_path), "dir": str(tmp_path / "again"), "socket": "",
            "limits": {}, "restart": {"policy": "never"}, "log_bytes": 4096,
        }  # fmt: skip
        Path(str(spec["argv"][2])).write_text(source)  # type: ignore[index]
        await n.supervisor.launch("again", spec)
        await until(lambda: n.supervisor.states["again"].state == "exited")
        assert n.supervisor.states["again"].exit == code
        await n.remove_everything()


def test_only_plain_scripts_of_this_interpreter() -> None:
    assert can_run([sys.executable, "-S", "/app/service.py", "more"])
    for argv in (
        [sys.executable, "/app/service.py"],
        [sys.executable, "-S", "-m", "module"],
        ["/bin/sh", "-S", "/app/service.py"],
        [sys.executable, "-S"],
    ):
        assert not can_run(argv)


def _command(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
