"""With an election a zone, ranks are still compared in the whole cluster.

In the original the asker ranked inside its zone and the answerer in the cluster, so that the
mismatch counter was noise exactly where views agreed. Take ``view.zone(self._zone)`` instead of
``view.ranking`` for the comparison in ``Neighbourhood.query`` and agreement counts as a mismatch
here.
"""

from __future__ import annotations

from dataclasses import replace

from leasehold.core.clock import VirtualClock
from leasehold.images.coord.settings import CoordSettings
from leasehold.images.neighbourhood import MISMATCH
from leasehold.images.testing import ORDER, Neighbours

ZONES = {ORDER[1]: "here", ORDER[2]: "here", ORDER[4]: "here"}


def mismatches() -> float:
    return float(MISMATCH.labels("layer")._value.get())


def test_agreement_is_not_counted_and_divergence_is(virtual: VirtualClock) -> None:
    async def main() -> None:
        world = Neighbours(
            virtual, zones=ZONES, zone="here", settings=CoordSettings(zone_scope=True)
        )
        before = mismatches()
        await world.resolve()
        assert sorted(world.asked) == sorted(ZONES), "the zone elects"
        assert world.pulled == [ORDER[1]], "its best node pulls"
        assert mismatches() == before, "all views agree"
        said = world.says[ORDER[2]]
        assert said is not None
        world.says[ORDER[2]] = replace(said, hrw_rank=said.hrw_rank + 1)
        await world.resolve()
        assert mismatches() == before + 1

    virtual.run(main)
