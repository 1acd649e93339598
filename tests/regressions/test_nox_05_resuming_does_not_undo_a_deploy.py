"""Defect 5: resuming at boot could subscribe the old trigger after the deploy's new one.

Seen failing with ``return await self._subscribe(spell)`` outside the lock in
``SpellEngine.subscribe``: the old period is armed in the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leasehold.node.distro import PackageDistro, SpellDistro
from leasehold.node.spells.trigger import ClockConfig, TriggerConfig
from leasehold.node.testing import node_in


def spell(period: int) -> SpellDistro:
    trigger = TriggerConfig(ClockConfig(1, 0, period))
    return SpellDistro(name="s", script="1", trigger=trigger)


async def test_the_newest_trigger_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = PackageDistro(name="p", spells=(spell(100),))
    async with node_in(tmp_path, package) as node:
        engine, id = node.spells, node.find("s", spell=True).id
        has_read, may_go_on = asyncio.Event(), asyncio.Event()
        use, first = engine.use, True

        async def slow(spell_id: str, action: Callable[[Any], Any]) -> Any:
            nonlocal first
            value = await use(spell_id, action)
            if first:
                first = False
                has_read.set()
                await may_go_on.wait()
            return value

        monkeypatch.setattr(engine, "use", slow)
        resuming = asyncio.create_task(engine.subscribe(id))
        await has_read.wait()
        deploying = asyncio.create_task(engine.update(id, spell(200)))
        for _ in range(50):
            await asyncio.sleep(0.002)  # The update may run now, if nothing holds it back.
        may_go_on.set()
        await asyncio.gather(resuming, deploying)
        config = engine.bus.subscribed(id)
        assert config is not None
        assert config.clock.period_sec == 200
