"""Scripts in real workers: what they can do, and what a bad one can not."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.events.event import Entity, NewEvent
from leasehold.events.log import ANY
from leasehold.events.memory import MemoryLog
from leasehold.model.events.node import SpellPublished
from leasehold.node.distro import PackageDistro, SpellDistro
from leasehold.node.service import Node
from leasehold.node.settings import NodeSettings
from leasehold.node.spells.trigger import (
    ClockConfig,
    ConnectionConfig,
    LogConfig,
    TriggerConfig,
)
from leasehold.node.testing import node_in, python_service, until

SETTINGS = NodeSettings(health_sec=0, spell_ttl_sec=1.0, spell_memory_mb=256, spell_workers=1)
ONCE = TriggerConfig(ClockConfig(1))


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with node_in(tmp_path, settings=SETTINGS, log=MemoryLog()) as node:
        yield node


async def install(node: Node, script: str, **fields: Any) -> str:
    distro = SpellDistro(name="s", script=script, **fields)
    return await node.install_spell(node.principals.management, "host", "", distro)


async def ended(node: Node, spell: str, runs: int = 1) -> None:
    """Return when ``spell`` has ended ``runs`` runs."""

    async def done() -> bool:
        records = await node.spells.use(spell, lambda s: s.runs())
        return len([r for r in records if r.outcome]) >= runs

    await until(done)


BAD = {
    "loops": ("def f():\n  for i in range(2000000000):\n    i + 1\nf()", "timeout", "ended after"),
    "recurses": ("def f():\n  return f()\nf()", "error", "in f"),
    "eats memory": ("x = 'a' * (1 << 30)", "killed", "memory"),
    "hoards": ("x = []\nfor i in range(2000000000):\n  x.append(str(i) * 1000)", None, ""),
    "unknown service": ("call('nobody', 'f')", "error", "no service 'nobody'"),
    "syntax": ("def (", "error", "Parse error"),
    "fails": ("fail('boo')", "error", "boo"),
    "no key": ("data('missing')", "error", "no string key"),
    "huge value": ("kv.set_string('k', 'x' * (2 << 20))", "error", "1048576 bytes"),
    "not text": ("kv.set_string('k', 1)", "error", "expected a string"),
    "bad number": ("kv.set_u32('k', 1 << 32)", "error", "0 to 4294967295"),
    "alias": ("call('spell', 'install', {'script': '', 'alias': 'self'})", "error", "cannot be"),
    "unknown field": ("call('spell', 'install', {'scrpt': ''})", "error", "takes no"),
    "stranger": ("call('spell', 'remove', 'nobody')", "error", "no spell 'nobody'"),
    "reports": ("error('seen')", "error", "seen"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_script_is_bounded_and_visible(node: Node, name: str) -> None:
    script, outcome, message = BAD[name]
    spell = await install(node, script)
    good = await install(node, "1 + 1")
    got = await node.spells.run_now(spell)
    assert got.outcome == outcome or outcome is None
    assert got.outcome != "ok"
    [error] = await node.spells.use(spell, lambda s: s.errors())
    assert message in error["message"]
    assert (await node.spells.run_now(good)).outcome == "ok"


async def test_printing_a_gibibyte_keeps_little(node: Node) -> None:
    spell = await install(node, "for i in range(1000):\n  print('x' * 10000)")
    outcome = await node.spells.run_now(spell)
    logs = await node.spells.use(spell, lambda s: s.logs())
    assert outcome.outcome == "ok"
    assert sum(len(line["text"]) for line in logs) < 300_000
    assert logs[-1]["text"].startswith("… more")


async def test_stores_are_bounded(node: Node) -> None:
    spell = await install(node, "print('line')\nerror('e')", trigger=TriggerConfig(mailbox=False))
    for _ in range(60):
        await node.spells.run_now(spell)
    for n in range(60):
        await node.spells.function(spell, "other", "push_mailbox", [f"m{n}"], sender="x")
    errors = await node.spells.use(spell, lambda s: s.errors(1000))
    mail = await node.spells.use(spell, lambda s: s.mail(1000))
    assert len({e["run"] for e in errors}) == 50
    assert [m["message"] for m in mail] == [f"m{n}" for n in range(59, 9, -1)]


async def test_roles_decide_who_writes(node: Node) -> None:
    spell = await install(node, "", kv={"c": 1})
    allowed = {
        "host": {"h_k": True, "hw_k": True, "w_k": False, "k": False},
        "worker": {"h_k": False, "hw_k": True, "w_k": True, "k": False},
        "other": {"h_k": False, "hw_k": False, "w_k": False, "k": False},
        "spell": {"h_k": True, "hw_k": True, "w_k": True, "k": True, "c": False},
    }
    for role, keys in allowed.items():
        for key, expected in keys.items():
            reply = await node.spells.function(spell, role, "set_string", [key, "v"], sender="x")  # type: ignore[arg-type]
            assert reply["success"] == expected, (role, key, reply)
    wrong_kind = await node.spells.function(spell, "other", "get_u32", ["k"], sender="x")
    assert wrong_kind["success"]
    assert wrong_kind["absent"]
    popped = await node.spells.function(spell, "host", "pop_mailbox", [], sender="x")
    assert "only the spell itself" in popped["error"]


async def test_kv_lists_numbers_and_bulk(node: Node) -> None:
    spell = await install(
        node,
        """
kv.list_push("l", "a"); kv.list_push("l", "b"); kv.list_push("l", "a")
removed = kv.list_remove("l", "a")
kv.set_u32("n", 7)
kv.set_string("n", "text")
response({"x": {"y": [1]}, "z": None})
[removed, kv.list_get("l"), kv.list_pop("l"), kv.list_pop("l"), kv.get_u32("n"),
 kv.get_string("n"), data("x"), data("z"), kv.exists("l"), kv.exists("x"), kv.get_u32("hw_counter")]
""",
    )
    outcome = await node.spells.run_now(spell)
    assert outcome.errors == []
    assert outcome.value == [
        2, ["b"], "b", None, None, "text", {"y": [1]}, None, False, True, 1,
    ]  # fmt: skip


async def test_triggers_by_mail_connection_and_clock(node: Node) -> None:
    script = "print(trigger)\nm = mailbox.pop()\nif m:\n  print(m['message'])"
    trigger = TriggerConfig(
        ClockConfig(1), ConnectionConfig(True, False), mailbox=True, overlap="queue"
    )
    spell = await install(node, script, trigger=trigger)
    await ended(node, spell, 1)
    node.connection("peer-1", connected=True)
    await ended(node, spell, 2)
    await node.spells.function(spell, "other", "push_mailbox", ["hello"], sender="me")
    await ended(node, spell, 3)
    runs = await node.spells.use(spell, lambda s: s.runs())
    assert [run.trigger for run in runs] == ["mailbox", "peer", "timer"]
    texts = [line["text"] for line in await node.spells.use(spell, lambda s: s.logs())]
    assert texts[-1] == "hello"
    assert '"peer_id"' in texts[1].replace("'", '"')


def found(n: int) -> NewEvent:
    return NewEvent.of(SpellPublished(spell="x", run="r", topic=f"t{n}", data={"n": n}))


async def test_log_events_fire_once_each_also_over_a_restart(tmp_path: Path) -> None:
    log = MemoryLog()
    script = (
        "for e in trigger['log'][0]['events']:\n  kv.list_push('seen', str(e['data']['data']['n']))"
    )
    trigger = TriggerConfig(log=LogConfig(("thing",), ("spell.*",)))
    package = PackageDistro(
        name="p", spells=(SpellDistro(name="s", script=script, trigger=trigger),)
    )

    async def seen(node: Node, count: int) -> list[str]:
        id = node.find("s", spell=True).id
        got: list[str] = []

        async def enough() -> bool:
            got[:] = await node.spells.use(id, lambda s: s.list_get("seen"))
            return len(got) >= count and not node.spells.is_running(id)

        await until(enough)
        return got

    async def append(n: int, kind: str = "thing") -> None:
        await log.append(Entity(kind, "1"), ANY, [found(n)])

    async with node_in(tmp_path, package, settings=SETTINGS, log=log, keep=True) as node:
        id = node.find("s", spell=True).id

        async def following() -> bool:
            return (await node.spells.use(id, lambda s: s.position()))[1] is not None

        await until(following)
        for n in range(250):
            await append(n)
        await append(1000, "other")
        await seen(node, 250)
    for n in range(250, 260):
        await append(n)  # While the node is down.
    async with node_in(tmp_path, package, settings=SETTINGS, log=log) as node:
        assert await seen(node, 260) == [str(n) for n in range(260)]


async def test_overlap(node: Node) -> None:
    """The default skips, ``queue`` runs once more, ``allow`` runs both at once."""
    node.services.builtins = {}
    runs = {}
    for overlap in ("skip", "queue", "allow"):
        script = "def f():\n  for i in range(3000000):\n    i + 1\nf()"
        trigger = TriggerConfig(connections=ConnectionConfig(True), overlap=overlap)  # type: ignore[arg-type]
        runs[overlap] = await install(node, script, trigger=trigger)
    for _ in range(3):
        node.connection("p", connected=True)
    assert node.spells._states[runs["allow"]].running == 3
    counts = {}
    for overlap, spell in runs.items():
        await until(lambda: not node.spells.is_running(spell))  # noqa: B023
        counts[overlap] = len(await node.spells.use(spell, lambda s: s.runs()))
    assert counts == {"skip": 1, "queue": 2, "allow": 3}


async def test_a_hanging_service_costs_its_caller_the_deadline(tmp_path: Path) -> None:
    hang = python_service("hang", "import time\n@service.function\ndef f(): time.sleep(60)")
    package = PackageDistro(name="hang", services=(hang,))
    settings = NodeSettings(health_sec=0, call_timeout_sec=0.3, spell_workers=1)
    async with node_in(tmp_path, package, settings=settings) as node:
        spell = await install(node, "try_call('hang', 'f')['error']")
        outcome = await node.spells.run_now(spell)
        assert "did not answer within 0.3 s" in outcome.value


async def test_spells_install_and_remove_spells_in_a_worker(node: Node) -> None:
    spell = await install(
        node,
        """
w = call("worker", "create", "lease-1")["worker"]
id = call("spell", "install", {"script": "kv.set_string('w_x', scope)", "scope": w,
    "alias": "worker-spell", "trigger": {"clock": {"start_sec": 1}}})["spell_id"]
[w, id, call("worker", "create", "lease-1")["worker"]]
""",
    )
    scope, id, again = (await node.spells.run_now(spell)).value
    assert scope == again == "worker:lease-1"
    await ended(node, id)
    assert await node.spells.use(id, lambda s: s.get_string("w_x")) == scope
    off = await install(node, "call('worker', 'deactivate', 'worker:lease-1')")
    assert (await node.spells.run_now(off)).outcome == "ok"
    assert node.builtins.identity(id) is None
    stranger = await install(node, "call('worker-spell', 'get_string', 'w_x')")
    assert (await node.spells.run_now(stranger)).outcome == "error"  # Aliases are per scope.
    gone = await install(node, "call('worker', 'remove', 'worker:lease-1')")
    assert (await node.spells.run_now(gone)).outcome == "ok"
    assert id not in node.journal.instances
    assert not node.journal.scopes
    assert not node.spells.directory(id).exists()


async def test_workers_die_with_the_run_not_the_node(node: Node) -> None:
    before = {worker.process.pid for worker in node.pool._all}
    spell = await install(node, "def f():\n  for i in range(2000000000):\n    i + 1\nf()")
    assert (await node.spells.run_now(spell)).outcome == "timeout"
    assert not any(os.path.exists(f"/proc/{pid}") for pid in before)
    await until(lambda: bool(node.pool._idle))
    with pytest.raises(LeaseholdError, match="no spell"):
        await node.run_spell("nobody")
