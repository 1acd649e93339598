"""The commands a tenant and an operator type, against a real provider with a real lease.

The provider is the demo's: a process of its own, a registry, a container. One for the whole module.
"""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from leasehold.app.demo.example import example
from leasehold.app.demo.flow import Demo
from leasehold.core.service import running
from leasehold.model import sdl


@dataclass
class Stage:
    """The demo's folder, and commands run as its tenant or as its operator alone."""

    folder: Path

    def run(
        self, *argv: str, tenant: bool = True, code: int | None = 0, stdin: str | None = None
    ) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "leasehold", *argv],
            capture_output=True,
            text=True,
            env=self.env(tenant=tenant),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            timeout=60,
            check=False,
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def json(self, *argv: str, tenant: bool = True, code: int = 0) -> Any:
        return json.loads(self.run(*argv, "--json", tenant=tenant, code=code))

    def env(self, *, tenant: bool) -> dict[str, str]:
        home = self.folder / ("home" if tenant else "nobody")
        return os.environ | {
            "LEASEHOLD_STATE": str(self.folder / "provider"),
            "LEASEHOLD_HOME": str(home),
            "NO_COLOR": "1",
        }


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    loop = asyncio.new_event_loop()
    ready, leave = threading.Event(), asyncio.Event()
    result: dict[str, Any] = {}

    async def play() -> None:
        demo = Demo(example())
        result["folder"] = demo.folder
        async with running(demo):
            try:
                await demo.play()
                ready.set()
                await leave.wait()
            finally:
                ready.set()
                result["end"] = await demo.clean()

    def whole() -> None:
        try:
            loop.run_until_complete(play())
        except Exception as error:
            result["error"] = error
            ready.set()

    thread = threading.Thread(target=whole)
    thread.start()
    assert ready.wait(120)
    if "error" in result:
        raise result["error"]
    yield Stage(result["folder"])
    loop.call_soon_threadsafe(leave.set)
    thread.join(60)
    assert result["end"].left == []


def test_listing_and_explaining(stage: Stage) -> None:
    (lease,) = stage.json("lease", "ls")
    assert (lease["name"], lease["state"], lease["services"]) == ("demo/1", "healthy", ["web"])
    (other,) = stage.json("lease", "ls", tenant=False)
    assert other["lease"] == lease["lease"]
    assert lease["lease"] not in stage.run("lease", "ls")
    assert lease["lease"] in stage.run("lease", "ls", "-o", "wide")
    for name in ("demo/1", "1", "web", "hello", "hello.localhost", "dem", lease["lease"]):
        assert stage.json("lease", "explain", name)["lease"] == lease["lease"]
    told = stage.run("lease", "explain", "hello")
    steps = [float(ms) for ms in re.findall(r"^ +([\d.]+) ms", told, re.M)]
    assert steps[0] == 0.0
    assert len(steps) >= 9
    assert "is healthy" in told
    by_operator = stage.json("lease", "explain", "hello", tenant=False)
    types = {step["type"] for step in by_operator["steps"]}
    assert types >= {"order.created", "bid.created", "lease.created", "deploy.healthy"}
    assert "did you mean web?" in stage.run("lease", "explain", "wbe", code=4)


def test_status_logs_and_events(stage: Stage) -> None:
    for tenant in (True, False):
        found = stage.json("lease", "status", "web", tenant=tenant)
        assert found["services"]["web"]["available"] == 1
        assert "1/1" in stage.run("lease", "status", "web", tenant=tenant)
        events = stage.run("lease", "events", "web", "--json", tenant=tenant).splitlines()
        assert any("ealthy" in line for line in events)
    stage.run("lease", "shell", "web", "--", "sh", "-c", "echo seen > /proc/1/fd/1")
    for tenant in (True, False):
        # The line went through a pipe and a log file: it is there soon, not at once.
        deadline = time.monotonic() + 10
        while "web-0  seen" not in stage.run("lease", "logs", "web", tenant=tenant):
            assert time.monotonic() < deadline
        (line,) = stage.run("lease", "logs", "web", "-n", "1", "-o", "json", tenant=tenant).split(
            "\n"
        )[:1]
        assert json.loads(line)["message"] == "seen"
        found = stage.run("lease", "logs", "web", "--search", "see", tenant=tenant)
        assert found == "web-0  seen\n"


def test_a_command_inside(stage: Stage) -> None:
    assert stage.run("lease", "exec", "1", "--", "sh", "-c", "echo hi; exit 7", code=7) == "hi\n"
    assert stage.run("lease", "shell", "1", "--", "cat", stdin="through\n") == "through\n"
    said = stage.run("lease", "shell", "--json", "1", "--", "sh", "-c", "echo o; echo e >&2")
    assert json.loads(said) == {"exit_code": 0, "stdout": "o\n", "stderr": "e\n"}
    assert "service" in stage.run("lease", "shell", "1", "-s", "nope", code=4)
    said = stage.run("lease", "shell", "1", "--", "echo", "by the operator", tenant=False)
    assert said == "by the operator\n"


def test_a_shell_in_a_terminal(stage: Stage) -> None:
    """Keys reach the shell as they are pressed, its size is this terminal's, its code is ours."""
    mine, theirs = pty.openpty()
    os.set_inheritable(theirs, True)
    import fcntl
    import struct
    import termios

    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 97, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "leasehold", "lease", "shell", "web"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=stage.env(tenant=True),
        start_new_session=True,
    )
    os.close(theirs)
    said = b""

    def until(text: bytes) -> None:
        nonlocal said
        deadline = time.monotonic() + 20
        while text not in said:
            assert time.monotonic() < deadline, said
            if select.select([mine], [], [], 0.5)[0]:
                said += os.read(mine, 4096)

    try:
        until(b"# ")
        os.write(mine, b"busybox stty size; echo $((40+2))\r")
        until(b"31 97")
        until(b"\n42")
        os.write(mine, b"exit 5\r")
        assert process.wait(20) == 5
    finally:
        process.kill()
        os.close(mine)


def test_the_screen_of_the_operator(stage: Stage) -> None:
    found = stage.json("status")
    assert found["ready"]
    assert found["leases"] == {"healthy": 1}
    assert found["alerts"] == []
    assert found["capacity"]["cpu"]["leased"] == 100
    assert found["market"]["behind"] == 0
    said = httpx.get(found["provider"]["gateway"] + "/status", trust_env=False).json()
    assert said["cluster"]["leases"] == 1
    assert said["cluster"]["inventory"]["nodes"][0]["offered"]["cpu"] > 0
    assert said["bidengine"] == {"orders": 0}
    assert said["manifest"]["deployments"] == 1
    screen = stage.run("status")
    assert "1 healthy" in screen
    assert "no alerts" in screen
    assert stage.json("status", "--state", "/nonexistent", code=6)["error"]["code"] == "not_up"
    assert {check["name"] for check in stage.json("doctor")["checks"]} >= {"root", "haproxy"}


def test_a_second_deployment_takes_the_host_name_over(stage: Stage, tmp_path: Path) -> None:
    registry = stage.json("lease", "status", "web")["services"]["web"]["image"].partition("/")[0]
    text = example().read_text().replace("localhost:29555", registry).replace("hello from", "2nd")
    second = tmp_path / "second.yaml"
    second.write_text(
        text.replace("          - hello.l", "          - two.localhost\n          - hello.l")
    )
    stage.run("deploy", str(second))

    port = httpx.URL(stage.json("lease", "status", "1")["uris"][0]).port or 80

    def says() -> str:
        return httpx.get(f"http://127.0.0.1:{port}/", headers={"host": "hello.localhost"}).text

    assert "hello from your lease" in says(), "who was first keeps it"
    moved = stage.run("manifest", "take", "2", "--host", "hello.localhost")
    assert moved == "hello.localhost leads to demo/2\n"
    deadline = time.monotonic() + 20
    while "2nd your lease" not in says() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "2nd your lease" in says()
    refused = stage.json("manifest", "take", "1", "--host", "strange.test", code=2)
    assert refused["error"]["code"] == "host_not_in_manifest"
    refused = stage.json("manifest", "take", "1", "--address", "mine", code=2)
    assert refused["error"]["code"] == "endpoint_not_in_manifest"
    assert stage.json("manifest", "take", "1", "--host", "hello.localhost") == {
        "transferred": ["hello.localhost"]
    }
    stage.run("lease", "close", "2", "--yes")


def test_a_new_manifest_and_back_again(stage: Stage, tmp_path: Path) -> None:
    """Changed by the tenant, seen in the history with its sender, rolled back, and closed."""
    registry = stage.json("lease", "status", "web")["services"]["web"]["image"].partition("/")[0]
    text = example().read_text().replace("localhost:29555", registry)
    changed = tmp_path / "changed.yaml"
    changed.write_text(text.replace("hello from your lease", "changed"))
    before = sdl.load(text).hash.hex()
    assert stage.json("lease", "history", "1")[0]["hash"] == before
    nothing = stage.json("lease", "rollback", "1", "--yes", code=4)
    assert nothing["error"]["code"] == "no_earlier_manifest"
    stage.run("manifest", "send", str(changed), "1")
    history = stage.json("lease", "history", "1")
    assert [entry["current"] for entry in history] == [True, False]
    assert history[0]["sender"].startswith("akash1")
    assert "demo" in stage.run("lease", "history", "1")
    assert stage.json("lease", "history", "1", tenant=False) == history
    refused = stage.json("lease", "rollback", "1", "--yes", tenant=False, code=3)
    assert refused["error"]["code"] == "tenant_only"
    stage.run("lease", "rollback", "1", "--yes")
    assert stage.json("lease", "history", "1")[0]["hash"] == before
    refused = stage.json("lease", "close", "1", code=2)
    assert refused["error"]["code"] == "not_confirmed"
    assert stage.json("lease", "close", "1", "--yes")["gone"] is True
    assert stage.json("lease", "ls") == []
    assert [lease["state"] for lease in stage.json("lease", "ls", "--all")] == ["closed"] * 2
