"""Deploying packages with real processes: what changes, what stays, what a failure leaves."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.node.distro import (
    Created,
    InitCall,
    PackageDistro,
    Report,
    Restart,
    ServiceDistro,
    SpellDistro,
)
from leasehold.node.journal import ROOT_SCOPE, PutAlias
from leasehold.node.service import Node
from leasehold.node.settings import NodeSettings
from leasehold.node.spells.trigger import ClockConfig, TriggerConfig
from leasehold.node.testing import NOTHING_BUNDLED, node_in, python_service, until

QUICK = NodeSettings(health_sec=0, deploy_attempts=1, ready_timeout_sec=3, call_timeout_sec=2)

ECHO = """
import os
@service.function
def version(): return {version}
@service.function
def pid(): return os.getpid()
@service.function
def set(value):
    open(os.path.join(service.data, "value"), "w").write(str(value))
@service.function
def get(): return open(os.path.join(service.data, "value")).read()
"""


def echo(version: int = 1, name: str = "echo", **fields: Any) -> PackageDistro:
    service = python_service(name, ECHO.replace("{version}", str(version)))
    defaults: dict[str, Any] = {"version": f"{version}.0.0", "services": (service,)}
    return PackageDistro(name=name, **{**defaults, **fields})


def broken(version: int, source: str, **fields: Any) -> PackageDistro:
    return echo(version, services=(python_service("echo", source),), **fields)


async def value(node: Node, function: str, *args: Any, service: str = "echo") -> Any:
    return (await node.call(service, function, list(args)))["value"]


def status(node: Node, package: str = "echo") -> str:
    return node.deployer.results[package].status


async def test_a_stop_in_the_middle_of_a_deploy_is_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = PackageDistro(
        name="slow", services=(python_service("slow", "import time; time.sleep(9)"),)
    )
    waits = asyncio.Event()
    node = Node(
        tmp_path, settings=QUICK, system_services=NOTHING_BUNDLED, packages=[slow, echo()],
        on_step=lambda package, step: waits.set() if step == "wait for slow" else None,
    )  # fmt: skip
    async with asyncio.timeout(20), running(node):
        await waits.wait()
    assert "failed" not in capsys.readouterr().out
    async with node_in(tmp_path, echo()) as node:
        assert status(node) in ("ready", "unchanged")
        assert {i.package for i in node.journal.instances.values()} == {"echo"}


async def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    async with node_in(tmp_path, echo(), keep=True) as node:
        assert node.deployer.results["echo"].changes == ["created echo"]
        pid, id = await value(node, "pid"), node.find("echo", spell=False).id
    before = (tmp_path / "node.db").stat().st_mtime_ns, (tmp_path / "keeper.journal").stat().st_size
    async with node_in(tmp_path, echo(), keep=True) as node:
        assert status(node) == "unchanged"
        assert await value(node, "pid") == pid
        assert node.find("echo", spell=False).id == id
    after = (tmp_path / "node.db").stat().st_mtime_ns, (tmp_path / "keeper.journal").stat().st_size
    assert after == before
    async with node_in(tmp_path, echo()) as node:
        assert await node.plan() == []


async def test_a_change_replaces_then_switches(tmp_path: Path) -> None:
    """Callers never find nobody: every call during the update is answered by the old or the new."""
    async with node_in(tmp_path, echo(1)) as node:
        old = node.find("echo", spell=False)
        await node.call("echo", "set", ["kept"])
        answers: list[int] = []

        async def callers() -> None:
            while True:
                answers.append(await value(node, "version"))

        caller = asyncio.create_task(callers())
        node.extra = {"echo": echo(2)}
        results = await node.reload()
        await until(lambda: answers[-1] == 2)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        assert results["echo"].changes == ["replaced echo"]
        assert answers == sorted(answers)
        assert set(answers) == {1, 2}
        assert old.id not in node.journal.instances
        assert old.id not in await node.supervisor.refresh()
        assert not node.services.directory(old.id).exists()
        assert await value(node, "get") == "kept"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise SystemExit('no way')", "ended"),
        ("import time; time.sleep(60)", "does not answer"),
        ("print('x' * 100); 1/0", "ZeroDivisionError"),
        (
            "import socket, sys\ns = socket.socket(fileno=3)\nwhile True:\n"
            "    c, _ = s.accept()\n    c.sendall(b'rubbish\\n')",
            "no JSON-RPC reply",
        ),
    ],
)
async def test_a_bad_upgrade_leaves_the_old_version_serving(
    tmp_path: Path, source: str, message: str
) -> None:
    async with node_in(tmp_path, echo(1), settings=QUICK) as node:
        pid = await value(node, "pid")
        bad = python_service("echo", source)
        quick = msgspec.structs.replace(bad, restart=Restart(first_sec=0.01, attempts=2))
        node.extra = {"echo": echo(2, services=(quick,))}
        result = (await node.reload())["echo"]
        assert result.status == "failed"
        assert message in result.message
        assert result.changes == ["kept version 1.0.0"]
        assert await value(node, "pid") == pid
        assert [i.state for i in node.journal.instances.values()] == ["live"]
        assert len(await node.supervisor.refresh()) == 1
        assert node.packages()[0]["status"] == "failed"
        node.extra = {"echo": echo(3)}
        assert (await node.reload())["echo"].status == "ready"


@pytest.mark.parametrize(
    ("reply", "part"),
    [
        ("return ['a list']", "no object with a boolean"),
        ("return {'success': 'yes'}", "no object with a boolean"),
        ("raise Refused('not today')", "not today"),
        ("raise ValueError('oops')", "ValueError: oops"),
        ("import time; time.sleep(30)", "did not answer within 2 s"),
    ],
)
async def test_an_init_that_fails_rolls_back(tmp_path: Path, reply: str, part: str) -> None:
    source = f"@service.function\ndef setup():\n    {reply}\n"
    if "list" in reply:
        # The SDK would wrap it; a service that does not use the SDK can answer anything.
        source = (
            "import json\nservice.answer = lambda line: (json.dumps({'jsonrpc': '2.0', 'id': 1, "
            "'result': ['a list'] if b'setup' in line else {'success': True}}) + '\\n').encode()\n"
        )
    package = broken(1, source, init=(InitCall("echo.setup"),))
    async with node_in(tmp_path, package, settings=QUICK) as node:
        result = node.deployer.results["echo"]
        assert result.status == "failed"
        assert "echo.setup" in result.message or "setup" in result.message
        assert part in result.message
        assert not node.journal.instances
        assert not node.journal.aliases
        assert not await node.supervisor.refresh()


async def test_a_python_init_sees_created_and_may_warn(tmp_path: Path) -> None:
    reports: list[Report] = []

    class Init:
        key = "v1"

        async def __call__(self, caller: Any, report: Report) -> list[str]:
            reports.append(report)
            reply = await caller.call("echo", "version")
            assert reply["value"] == 1
            return ["an old certificate was left out"]

    async with node_in(tmp_path, echo(1, init=Init())) as node:
        result = node.deployer.results["echo"]
        assert (result.status, result.warnings) == ("degraded", ["an old certificate was left out"])
        assert isinstance(reports[0]["echo"], Created)
        again = (await node.reload())["echo"]
        assert (again.status, len(reports)) == ("unchanged", 1)
        assert node.packages()[0]["warnings"] == ["an old certificate was left out"]


@pytest.mark.parametrize("policy", ["reinit", "reinstall", "ignore"])
async def test_config_change_by_policy(tmp_path: Path, policy: Any) -> None:
    def package(n: int) -> PackageDistro:
        config = {"n": n}
        init = (InitCall("echo.set", (n,)),)
        return echo(1, config=config, init=init, on_config_change=policy)

    async with node_in(tmp_path, package(1)) as node:
        pid = await value(node, "pid")
        node.extra = {"echo": package(2)}
        await node.reload()
        assert (await value(node, "pid") == pid) == (policy != "reinstall")
        assert await value(node, "get") == ("1" if policy == "ignore" else "2")
        assert (await node.reload())["echo"].status == "unchanged"


async def test_order_blocking_and_cycles(tmp_path: Path) -> None:
    steps: list[str] = []
    bad = python_service("bad", "raise SystemExit(1)", restart=Restart(policy="never"))
    packages = (
        echo(1, "third", after=("second",)),
        echo(1, "second", after=("first", "not-here")),
        echo(1, "first"),
        PackageDistro(name="bad", services=(bad,)),
        echo(1, "waits", after=("bad",)),
        echo(1, "loop-a", after=("loop-b",)),
        echo(1, "loop-b", after=("loop-a",)),
    )
    async with node_in(
        tmp_path, *packages, settings=QUICK, on_step=lambda p, s: steps.append(f"{p}: {s}")
    ) as node:
        launches = [s.partition(":")[0] for s in steps if "launch" in s]
        assert launches.index("first") < launches.index("second") < launches.index("third")
        got = {name: status(node, name) for name in ("first", "second", "third")}
        assert set(got.values()) == {"ready"}
        assert status(node, "bad") == "failed"
        assert status(node, "waits") == "blocked"
        assert status(node, "loop-a") == status(node, "loop-b") == "failed"
        assert "loop-a after loop-b" in node.deployer.results["loop-a"].message


async def test_a_package_that_must_work_fails_the_node(tmp_path: Path) -> None:
    """The others are deployed to their end first; the next start finds them in place."""
    must = broken(1, "raise SystemExit(3)", on_failure="fail")
    with pytest.raises(LeaseholdError, match="package echo could not be deployed"):
        async with node_in(tmp_path, must, echo(1, "other"), settings=QUICK, keep=True):
            pass
    async with node_in(tmp_path, echo(1), echo(1, "other"), settings=QUICK) as node:
        assert status(node, "other") == "unchanged"
        assert status(node) == "ready"


@pytest.mark.parametrize("policy", ["remove", "stop", "keep"])
async def test_a_disabled_package_is_pruned_by_policy(tmp_path: Path, policy: Any) -> None:
    spell = SpellDistro(
        name="tick", script="kv.set_string('seen', 'yes')", trigger=TriggerConfig(ClockConfig(1))
    )
    package = echo(1, spells=(spell,), on_disable=policy)
    async with node_in(tmp_path, package, keep=True) as node:
        await node.call("echo", "set", ["kept"])
        pid = await value(node, "pid")
    async with node_in(tmp_path, keep=True) as node:
        alive = os.path.exists(f"/proc/{pid}")
        assert alive == (policy == "keep")
        if policy == "remove":
            assert not node.journal.instances
            assert not node.journal.packages
            assert not list((tmp_path / "data").iterdir())
            assert not list((tmp_path / "spells").iterdir())
            assert not list((tmp_path / "services").iterdir())
            assert not list((tmp_path / "blueprints").iterdir())
        else:
            armed = [s["state"] for s in node.list_instances(spells=True)]
            assert armed == (["stopped"] if policy == "stop" else ["idle"])
    async with node_in(tmp_path, package) as node:
        assert status(node) in ("ready", "unchanged")
        if policy != "remove":
            assert await value(node, "get") == "kept"


async def test_an_alias_held_by_somebody_else_is_taken_and_the_loser_lives(tmp_path: Path) -> None:
    async with node_in(tmp_path, echo(1, "mine")) as node:
        mine = node.find("mine", spell=False)
        # Somebody points the alias of a package that is not there yet at their own service.
        await node.instances.add_alias(node.principals.management, ROOT_SCOPE, "echo", mine.id)
        node.extra["echo"] = echo(2)
        result = (await node.reload())["echo"]
        assert "took alias echo" in result.changes
        assert await value(node, "version") == 2
        assert await value(node, "version", service="mine") == 1
        # And when somebody moves it away, the next deploy takes it back without a restart.
        pid = await value(node, "pid")
        await node.journal.commit(PutAlias(ROOT_SCOPE, "echo", mine.id))
        await node.reload()
        assert await value(node, "pid") == pid


async def test_ownership(tmp_path: Path) -> None:
    async with node_in(tmp_path, echo(1)) as node:
        service = node.find("echo", spell=False)
        assert service.owner == node.principals.host
        with pytest.raises(LeaseholdError, match="may not set alias"):
            await node.instances.add_alias("stranger", ROOT_SCOPE, "x", service.id)
        for alias in ("self", "spell", service.id, "Not A Name"):
            with pytest.raises(LeaseholdError, match="cannot be an alias"):
                await node.instances.add_alias(
                    node.principals.management, ROOT_SCOPE, alias, service.id
                )
        with pytest.raises(LeaseholdError, match="may not remove"):
            await node.remove_instance("stranger", service, spell=False)
        with pytest.raises(LeaseholdError, match="isn't a spell"):
            await node.remove_instance(node.principals.management, service, spell=True)
        await node.instances.add_alias(node.principals.management, ROOT_SCOPE, "x", service.id)
        assert await value(node, "version", service="x") == 1
        await node.remove_instance(node.principals.management, service, spell=False)
        assert not node.journal.aliases


async def test_a_removal_that_fails_is_finished_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node_in(tmp_path, echo(1)) as node:
        old = node.find("echo", spell=False)

        async def refuse(instance: Any) -> None:
            raise OSError("device busy")

        with monkeypatch.context() as patch:
            patch.setattr(node.services, "remove", refuse)
            node.extra = {"echo": echo(2)}
            await node.reload()
        assert await value(node, "version") == 2
        assert node.journal.instances[old.id].state == "retiring"
        assert not node.journal.aliases_of(old.id)
        await node.reload()
        assert old.id not in node.journal.instances
        assert len(await node.supervisor.refresh()) == 1


async def test_a_downgrade_is_held_unless_allowed(tmp_path: Path) -> None:
    async with node_in(tmp_path, echo(2), keep=True) as node:
        node.extra = {"echo": echo(1)}
        assert (await node.reload())["echo"].status == "held"
        assert await value(node, "version") == 2
    allowed = NodeSettings(health_sec=0, allow_downgrade=True)
    async with node_in(tmp_path, echo(1), settings=allowed) as node:
        assert await value(node, "version") == 1


async def test_killed_services_come_back_also_without_the_node(tmp_path: Path) -> None:
    async with node_in(tmp_path, echo(1), keep=True) as node:
        os.kill(await value(node, "pid"), signal.SIGKILL)
        second = await value(node, "pid")  # The connection waits for the restart.
    os.kill(second, signal.SIGKILL)
    async with node_in(tmp_path, echo(1)) as node:
        third = await value(node, "pid")
        assert third != second
        assert status(node) == "unchanged"
        assert "Killed" not in "".join(node.services.logs(node.find("echo", spell=False)))


async def test_strangers_are_removed(tmp_path: Path) -> None:
    async with node_in(tmp_path, echo(1), keep=True) as node:
        spec = node.services._process(
            node.find("echo", spell=False), tmp_path / "services" / "ghost", tmp_path
        )
        state = await node.supervisor.launch(
            "ghost", {**spec, "socket": str(tmp_path / "ghost.sock")}
        )
        (tmp_path / "services" / "leftover").mkdir()
        (tmp_path / "spells" / "leftover").mkdir()
    async with node_in(tmp_path, echo(1)) as node:
        assert not os.path.exists(f"/proc/{state.pid}")
        assert set(await node.supervisor.refresh()) == {node.find("echo", spell=False).id}
        assert "leftover" not in node.services.on_disk() | node.spells.on_disk()


async def test_spells_keep_state_and_phase_over_restarts_and_updates(tmp_path: Path) -> None:
    def package(greeting: str, script: str, **fields: Any) -> PackageDistro:
        spell = SpellDistro(
            name="s",
            script=script,
            kv={"settings": {"greeting": greeting}, **fields.pop("kv", {})},
            trigger=TriggerConfig(ClockConfig(1, 0, 3600)),
            **fields,
        )
        return PackageDistro(name="p", version="1", spells=(spell,))

    count = "kv.set_u32('runs', (kv.get_u32('runs') or 0) + 1)\nprint(data('settings')['greeting'])"
    async with node_in(tmp_path, package("hi", count, kv={"old": 1}), keep=True) as node:
        id = node.find("s", spell=True).id
        await until(lambda: not node.spells.is_running(id))
        assert await node.spells.use(id, lambda s: s.get_u32("runs")) == 1
        due = node.spells.bus._schedule.next_due()
    async with node_in(tmp_path, package("hello", count + "\n# new", kv={})) as node:
        assert node.find("s", spell=True).id == id
        assert node.deployer.results["p"].changes == ["updated s"]
        assert node.spells.bus._schedule.next_due() == due
        outcome = await node.run_spell("s")
        assert outcome.logs == ["hello"]
        keys = await node.spells.use(id, lambda s: s.dump())
        assert keys["runs"]["value"] == 2
        assert "old" not in keys
        node.extra = {"p": package("hello", "print('v2')", schema=2, migration=(
            "kv.set_string('total', str(kv.get_u32('runs') * 10))\nkv.remove('runs')"
        ))}  # fmt: skip
        assert (await node.reload())["p"].status == "ready"
        keys = await node.spells.use(id, lambda s: s.dump())
        assert keys["total"]["value"] == "20"
        assert list(node.spells.directory(id).glob("backup-schema-1-*.db"))
        node.extra = {"p": package("hello", "print('v3')", schema=3, migration="fail('no')")}
        result = (await node.reload())["p"]
        assert result.status == "degraded"
        assert "schema 2 to 3" in result.message
        assert (await node.run_spell("s")).logs == ["v2"]


@pytest.mark.parametrize("damage", ["zeroed", "noise", "truncated"])
async def test_a_corrupt_file_costs_one_spell_its_state(tmp_path: Path, damage: str) -> None:
    def package(name: str) -> PackageDistro:
        spell = SpellDistro(name=name, script="kv.set_u32('n', (kv.get_u32('n') or 0) + 1)")
        return PackageDistro(name=name, spells=(spell,))

    both = (package("hurt"), package("well"))
    async with node_in(tmp_path, *both, keep=True) as node:
        for name in ("hurt", "well"):
            await node.run_spell(name)
        file = node.spells.directory(node.find("hurt", spell=True).id) / "spell.db"
    whole = file.read_bytes()
    changed = {"zeroed": bytes(len(whole)), "noise": os.urandom(len(whole)), "truncated": b"SQL"}
    file.write_bytes(changed[damage])
    async with node_in(tmp_path, *both) as node:
        result = node.deployer.results["hurt"]
        assert result.status == "degraded"
        assert "could not be read and was moved to" in result.message
        assert next(file.parent.glob("corrupt-*.db")).read_bytes() == changed[damage]
        assert node.deployer.results["well"].status == "unchanged"
        for name, runs in (("hurt", 1), ("well", 2)):
            assert (await node.run_spell(name)).outcome == "ok"
            keys = await node.spells.use(node.find(name, spell=True).id, lambda s: s.dump())
            assert keys["n"]["value"] == runs


async def test_a_package_directory_end_to_end(tmp_path: Path) -> None:
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "hello.py").write_text(
        "from leasehold.node.sdk import Service\nservice = Service()\n"
        "@service.function\ndef greet(name):\n    return service.config['greeting'] + ' ' + name\n"
        "service.serve()\n"
    )
    (folder / "hello.star").write_text("print(call('hello', 'greet', 'spell')['value'])")
    (folder / "hello.toml").write_text(
        """
        name = "hello"
        version = "1.2.0"
        on_config_change = "reinstall"
        [config]
        greeting = "hello"
        [[service]]
        name = "hello"
        run = ["{python}", "{app}/hello.py"]
        files = ["hello.py"]
        [[spell]]
        name = "hello-spell"
        script = "hello.star"
        [[init]]
        call = "hello.greet"
        args = ["{config.greeting}"]
        """
    )
    (folder / "typo.toml").write_text('name = "typo"\nversion = "1"\nafterr = []\n')
    settings = NodeSettings(
        packages_dir=str(folder), packages={"hello": {"greeting": "hi"}}, rescan_sec=0.05
    )
    async with node_in(tmp_path / "node", settings=settings) as node:
        assert status(node, "typo") == "failed"
        assert "afterr" in node.deployer.results["typo"].message
        assert (await node.run_spell("hello-spell")).logs == ["hi spell"]
        (folder / "hello.star").write_text("print('changed')")

        async def changed() -> bool:
            return (await node.run_spell("hello-spell")).logs == ["changed"]

        await until(changed)
        # The directory is away for a moment: said, and nothing of it is removed.
        folder.rename(tmp_path / "elsewhere")
        await until(lambda: "node.packages_dir" in node.deployer.results)
        assert (await node.run_spell("hello-spell")).logs == ["changed"]
        assert node.journal.packages["hello"].status == "degraded"
        (tmp_path / "elsewhere").rename(folder)
        await until(lambda: node.journal.packages["hello"].status == "ready")


async def test_no_container_runtime_is_said_and_hurts_nobody_else(tmp_path: Path) -> None:
    image = ServiceDistro(name="boxed", image="r/x@sha256:" + "0" * 64)
    box = PackageDistro(name="box", services=(image,))
    async with node_in(tmp_path, box, echo(1), settings=QUICK) as node:
        assert "cannot run containers" in node.deployer.results["box"].message
        assert status(node) == "ready"


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (("/no/such/program",), "No such file"),
        (("sh", "-c", "echo broken; exit 3"), "broken"),
    ],
)
async def test_a_program_that_does_not_stay_up_is_no_success(
    tmp_path: Path, run: tuple[str, ...], message: str
) -> None:
    restart = Restart(first_sec=0.01, attempts=2)
    service = ServiceDistro(name="svc", run=run, ready="started", restart=restart)
    package = PackageDistro(name="p", services=(service,))
    async with node_in(tmp_path, package, settings=QUICK) as node:
        assert status(node, "p") == "failed"
        assert message in node.deployer.results["p"].message


EXAMPLES = Path(__file__).parents[3] / "examples" / "packages"


async def test_the_example_package(tmp_path: Path) -> None:
    settings = NodeSettings(packages_dir=str(EXAMPLES), packages={"hello": {"greeting": "hi"}})
    async with node_in(tmp_path, settings=settings) as node:
        assert status(node, "hello") == "ready"
        spell = node.find("hello-spell", spell=True).id

        async def printed(text: str) -> bool:
            lines = await node.spells.use(spell, lambda s: s.logs())
            return any(line["text"] == text for line in lines)

        await until(lambda: printed("hi spell for the 1 time"))
        await node.call_spell("hello-spell", "push_mailbox", ["you"])
        await until(lambda: printed("hi you for the 2 time"))


class Artifacts:
    """OCI artifacts that are unpacked already, bottom layer first."""

    def __init__(self, *layers: Path) -> None:
        self.layers = layers
        self.digest = "sha256:" + "0" * 64

    async def release(self, holder: str, *, keep: object = ()) -> None:
        raise AssertionError("one of them could not be read: nothing is known to be unused")

    async def ensure(self, reference: str, *, holder: str) -> Artifacts:
        if "missing" in reference:
            raise LeaseholdError("not_found", f"no such artifact: {reference}")
        return self


async def test_a_package_out_of_an_artifact(tmp_path: Path) -> None:
    old, new = tmp_path / "1", tmp_path / "2"
    for layer, version in ((old, 1), (new, 2)):
        layer.mkdir()
        (layer / "package.toml").write_text(
            f'name = "boxed"\nversion = "{version}"\n[[spell]]\nname = "s"\nscript = "s.star"\n'
        )
        (layer / "s.star").write_text(f"print({version})")
    digest = "@sha256:" + "0" * 64
    images = (f"r/boxed{digest}", f"r/missing{digest}", "r/tagged:latest")
    async with node_in(
        tmp_path / "node", settings=NodeSettings(images=images), images=Artifacts(old, new)
    ) as node:
        assert (await node.run_spell("s")).logs == ["2"]
        assert node.journal.packages["boxed"].source == images[0]
        assert "no such artifact" in node.deployer.results["missing"].message
        assert "by digest" in node.deployer.results["tagged:latest"].message
