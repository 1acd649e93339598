"""Defect 8: an ended clock made the whole config invalid at the next boot.

Seen failing with the stored trigger validated again in ``SpellEngine._subscribe``: the spell is not
resumed, and its connection trigger is gone with the clock.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from leasehold.node.distro import SpellDistro
from leasehold.node.spells.store import SpellStore
from leasehold.node.spells.trigger import ClockConfig, ConnectionConfig, TriggerConfig
from leasehold.node.testing import node_in


async def test_connections_survive_the_end_of_the_clock(tmp_path: Path) -> None:
    trigger = TriggerConfig(ClockConfig(1, 4_000_000_000, 3600), ConnectionConfig(connect=True))
    async with node_in(tmp_path, keep=True) as node:
        distro = SpellDistro(name="s", script="1", trigger=trigger)
        id = await node.install_spell(node.principals.management, "host", "s", distro)
    store = SpellStore(tmp_path / "spells" / id / "spell.db")
    meta = store.meta()
    assert meta is not None
    ended = msgspec.structs.replace(trigger, clock=ClockConfig(1, 1_000_000_000, 3600))
    store.write(msgspec.structs.replace(meta, trigger=ended), {})  # As if years had passed.
    store.close()
    async with node_in(tmp_path) as node:
        assert node.spells.bus.subscribed(id) == ended
        assert id not in node.spells.bus._schedule
        before = len(await node.spells.use(id, lambda s: s.runs()))
        node.connection("p", connected=True)
        assert node.spells.is_running(id)
        assert before <= 1
