"""Every ``leasehold node`` command against a whole provider: real gateway, registry, packages."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from typer.testing import CliRunner

from leasehold.cli.client import operator
from leasehold.cli.node import app
from leasehold.cli.state import running
from leasehold.core.errors import LeaseholdError

if TYPE_CHECKING:
    from conftest import Live

Node = Callable[..., Any]


@pytest.fixture
def node(live: Live) -> Node:
    """Run one ``leasehold node`` command; its answer, and its output for people."""

    def run(*words: str, fails: bool = False) -> Any:
        done = CliRunner().invoke(app, [*words, "--state", str(live.state), "--json"])
        if isinstance(done.exception, LeaseholdError):
            raise done.exception
        assert (done.exit_code != 0) == fails, done.output
        return json.loads(done.stdout)

    return run


@pytest.fixture
def said(live: Live) -> Callable[..., str]:
    """The output for people of one command."""

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, [*words, "--state", str(live.state)])
        assert done.exit_code == 0, (words, done.output, done.exception)
        return done.stdout

    return run


def eventually(holds: Callable[[], Any], seconds: float = 15.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def test_packages_from_every_source(live: Live, node: Node, said: Callable[..., str]) -> None:
    found = {p["name"]: p for p in node("packages")}
    assert {name: p["status"] for name, p in found.items()} == dict.fromkeys(
        ("aqua-ipfs", "trust-graph", "registry", "decider", "hello", "boxed"), "ready"
    ) | {"trust-graph": found["trust-graph"]["status"]}
    assert found["boxed"]["source"] == live.package
    assert found["hello"]["source"].endswith("hello.toml")
    assert found["boxed"]["installed"] == "2.0.0"
    status = node("status")
    assert status["ready"]
    assert status["boot_ms"] > 0
    versions = httpx.get(f"{running(live.state).gateway}/versions").json()
    assert versions == status["versions"]
    assert versions["boxed"] == "2.0.0"
    ready = httpx.get(f"{running(live.state).ops}/readyz").json()
    assert ready["ready"], ready
    assert "boxed" in said("packages")
    assert "ready" in said("status")


def test_services(node: Node, said: Callable[..., str]) -> None:
    services = {s["name"]: s for s in node("services", "ls")}
    assert set(services) == {
        "aqua-ipfs", "trust-graph", "registry", "connector", "hello", "boxed", "crate",
    }  # fmt: skip
    assert {s["state"] for s in services.values()} == {"running"}
    assert services["crate"]["kind"] == "container"
    assert services["connector"]["kind"] == "builtin"
    assert services["boxed"]["version"] == "2.0.0"
    # The configuration of the operator reached a package that came from a registry.
    assert node("services", "call", "boxed", "word")["value"] == "boxed"
    assert node("services", "call", "hello", "greet", "you")["value"] == "good morning you"
    refused = node("services", "call", "hello", "greet", "", fails=True)
    assert refused == {"success": False, "error": "say who"}
    assert "greet" in node("services", "show", "hello")["functions"]
    before = services["boxed"]["pid"]
    assert node("services", "restart", "boxed")["pid"] != before
    assert node("services", "call", "boxed", "word", "--timeout", "5")["value"] == "boxed"
    logs = eventually(lambda: node("services", "logs", "crate", "-n", "1")["lines"])
    assert logs == ["crate is up"]
    assert said("services", "logs", "crate") == "crate is up\n"
    assert "crate" in said("services", "ls")
    assert "greet" in said("services", "show", "hello")
    with pytest.raises(LeaseholdError, match="hello-spell"):
        node("services", "show", "hello-spell")


def test_spells(node: Node, said: Callable[..., str]) -> None:
    spells = {s["name"]: s["state"] for s in node("spells", "ls")}
    assert spells == dict.fromkeys(("registry-spell", "decider", "hello-spell"), "armed")
    first = "good morning spell for the 1 time"
    eventually(lambda: first in [line["text"] for line in node("spells", "logs", "hello-spell")])
    ran = eventually(lambda: _run_unless_busy(node))
    assert ran["logs"] == ["good morning spell for the 2 time"]
    assert node("spells", "errors", "hello-spell") == []
    shown = node("spells", "show", "hello-spell")
    assert shown["trigger"]["clock"]["period_sec"] == 3600
    assert "manual" in shown["runs"][0]["trigger"]
    assert node("spells", "kv", "hello-spell")["runs"]["value"] == 2
    assert node("spells", "kv", "hello-spell", "h_note", "7")["success"]
    assert node("spells", "kv", "hello-spell", "h_note")["h_note"]["value"] == 7
    with pytest.raises(LeaseholdError, match="h_"):
        node("spells", "kv", "hello-spell", "runs", "9")
    assert node("spells", "trigger", "hello-spell")["mailbox"] is True
    assert node("spells", "trigger", "hello-spell", '{"mailbox": true}')["success"]
    assert node("spells", "trigger", "hello-spell") == {"mailbox": True}
    # What an operator changed by hand is what a reload would put right, and says so before.
    assert [a["name"] for a in node("plan")] == ["hello-spell"]
    assert "hello-spell" in said("plan")
    changes = {r["package"]: r["changes"] for r in node("reload") if r["changes"]}
    assert changes == {"hello": ["updated hello-spell"]}
    assert said("plan") == "nothing to do\n"
    for words in (("ls",), ("show", "hello-spell"), ("logs", "hello-spell"), ("kv", "hello-spell")):
        assert said("spells", *words)
    with pytest.raises(LeaseholdError, match="nobody"):
        node("spells", "show", "nobody")


def _run_unless_busy(node: Node) -> Any:
    try:
        return node("spells", "run", "hello-spell")
    except LeaseholdError as error:
        if error.code != "spell_is_running":
            raise
        return None


def test_images_in_use_are_kept(live: Live, node: Node) -> None:
    """The package's own, and the one a container runs from, whatever is collected."""
    with operator(live.state) as api:
        before = [image["reference"] for image in api.get("/v1/images")]
        assert live.package in before
        assert len(before) == 2
        api.post("/v1/images/gc", {"keep_seconds": 0})
        assert [image["reference"] for image in api.get("/v1/images")] == before
    assert node("services", "restart", "crate")["state"] == "running"


def test_what_is_here_is_found_by_name(live: Live, node: Node) -> None:
    [gateway] = node("services", "call", "registry", "find", "gateways")["records"]
    assert gateway["value"] == running(live.state).gateway
    assert gateway["peer"] == node("status")["peer_id"]
    [manager] = node("services", "call", "registry", "find", "managers")["records"]
    assert httpx.get(f"{manager['value']}/get_workers").is_success


def test_the_decider_reads_the_market(node: Node) -> None:
    """Through the connector, which is the provider's own log: no leases yet, and no error."""
    assert node("services", "call", "connector", "get_leases")["leases"] == []
    found = eventually(lambda: node("spells", "show", "decider")["runs"])
    assert {run["outcome"] for run in found} <= {"ok", "running", None}
    assert node("spells", "errors", "decider") == []


def test_the_command_itself(live: Live) -> None:
    """As a process: output for programs on stdout, exit codes of errors."""
    base = [sys.executable, "-m", "leasehold", "node", "services"]
    state = ["--state", str(live.state)]
    done = subprocess.run([*base, "ls", *state, "--json"], capture_output=True, check=True)
    assert len(json.loads(done.stdout)) == 7
    done = subprocess.run([*base, "show", "nobody", *state], capture_output=True, check=False)
    assert done.returncode != 0
    assert b"nobody" in done.stderr + done.stdout
