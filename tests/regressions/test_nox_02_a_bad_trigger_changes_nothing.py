"""Defect 2: an update unsubscribed before it validated, and a bad config cost the old spell.

Seen failing with ``self.unsubscribe(spell)`` as first statement of ``SpellEngine.update``: the old
spell is silent after the refused update.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.node.distro import PackageDistro, SpellDistro
from leasehold.node.spells.trigger import ClockConfig, TriggerConfig
from leasehold.node.testing import node_in

GOOD = TriggerConfig(ClockConfig(1, 0, 3600))
BAD = TriggerConfig(ClockConfig(1, 1_000_000, 3600))  # Ended in 1970.


def package(trigger: TriggerConfig, script: str) -> PackageDistro:
    return PackageDistro(name="p", spells=(SpellDistro(name="s", script=script, trigger=trigger),))


async def test_the_old_spell_stays_armed(tmp_path: Path) -> None:
    async with node_in(tmp_path, package(GOOD, "'old'")) as node:
        id = node.find("s", spell=True).id
        with pytest.raises(LeaseholdError, match="ended in the past"):
            await node.spells.update(id, SpellDistro(name="s", script="'new'", trigger=BAD))
        assert node.spells.bus.subscribed(id) == GOOD
        node.extra = {"p": package(BAD, "'new'")}
        assert (await node.reload())["p"].status == "failed"
        assert node.spells.bus.subscribed(id) == GOOD
        meta = await node.spells.use(id, lambda s: s.meta())
        assert meta is not None
        assert meta.script == "'old'"
