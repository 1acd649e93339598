"""Defect 6: overlapping runs shared counter and trigger: ids repeated, triggers were overwritten.

Seen failing without the overlap guard at the top of ``SpellEngine.fire`` (runs see the trigger of
another one in ``hw_trigger``), and, for the ids, with the counter read and written in two
transactions in ``SpellStore.begin_run``.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from leasehold.node.distro import SpellDistro
from leasehold.node.spells.store import SpellMeta, SpellStore
from leasehold.node.spells.trigger import ConnectionConfig, TriggerConfig, TriggerEvent
from leasehold.node.testing import node_in, until

SCRIPT = """
def work():
    for i in range(300000):
        i + 1
work()
stored = data("hw_trigger")
if stored != trigger:
    error("this run was fired by %s and finds %s" % (trigger, stored))
"""


async def test_a_run_finds_the_trigger_that_fired_it(tmp_path: Path) -> None:
    trigger = TriggerConfig(connections=ConnectionConfig(connect=True))
    async with node_in(tmp_path) as node:
        distro = SpellDistro(name="s", script=SCRIPT, trigger=trigger)
        id = await node.install_spell(node.principals.management, "host", "", distro)
        for n in range(20):
            node.connection(f"peer-{n}", connected=True)
            await asyncio.sleep(0.01)
        await until(lambda: not node.spells.is_running(id), 20)
        assert await node.spells.use(id, lambda s: s.errors()) == []


def test_ids_never_repeat(tmp_path: Path) -> None:
    store = SpellStore(tmp_path / "spell.db")
    store.write(SpellMeta("", TriggerConfig(), 0.0, 1, "c"), {})
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda n: store.begin_run("s", TriggerEvent("manual"), n), range(200)))
    assert sorted(n for n, _ in runs) == list(range(1, 201))
    assert store.get_u32("hw_counter") == 200
    store.close()
