"""What divides a fleet costs a bounded number of pulls; a dead registry costs no known tag.

Three limits of the original, one of them kept:

* Nodes whose views differ elect different pullers, who do not know of one another. Still so, and
  counted: a digest leaves its origin at most once for each view there is, and once a side of a
  partition. (Ask ``rng.choice(names)`` instead of the ranks in rule 7 and it is more.)
* Content held only outside the asked ranks while the DHT is empty is not found. Still so: it costs
  one pull by the first rank, for everybody.
* A tag died with its registry. Here a known one survives it for as long as the operator says:
  return nothing from ``Access.known_tag`` and the last test fails.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from sim.images.fleet import simulate

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.images import build
from leasehold.images.memory import MemoryOrigin
from leasehold.images.ports import FailureClass, OriginError
from leasehold.images.service import Images
from leasehold.images.settings import ImagesSettings
from leasehold.images.testing import ORDER, Neighbours

VIEWS = 5
"""The whole one, and four older ones that nodes which are behind share."""


@pytest.mark.parametrize("seed", range(3))
def test_a_pull_a_view_at_most(seed: int) -> None:
    report = simulate("skew", nodes=100, digests=2, seed=seed)
    assert max(report.origin_pulls) <= VIEWS
    assert report.failed == 0


def test_a_pull_a_side(virtual: VirtualClock) -> None:
    report = simulate("partition", nodes=60, digests=2)
    assert set(report.origin_pulls) <= {1, 2}
    assert report.failed == 0


def test_what_nobody_asked_about_is_pulled_once_more(virtual: VirtualClock) -> None:
    async def main() -> None:
        world = Neighbours(virtual)
        world.says[ORDER[4]] = world.fresh(ORDER[4], has_cached=True)  # rank 4 of 5, not asked
        assert [h.node for h in (await world.resolve()).holders] == [ORDER[0]]
        assert [h.node for h in (await world.resolve()).holders] == [ORDER[0]], "the same for all"

    virtual.run(main)


def test_a_known_tag_outlives_its_registry(virtual: VirtualClock, tmp_path: Path) -> None:
    async def main() -> None:
        origin = MemoryOrigin(clock=virtual)
        origin.add(build.image([build.layer({"x": b"1"})]), "1")
        settings = ImagesSettings(known_tag_seconds=3600, access_bound_seconds=3600)
        async with running(Images(tmp_path, virtual, settings, origin=origin)) as images:
            first = await images.ensure("r.example/a:1")
            origin.failure = OriginError(FailureClass.TRANSIENT, "dead")
            await virtual.sleep(3500)
            assert (await images.ensure("r.example/a:1")).digest == first.digest
            await virtual.sleep(200)
            with pytest.raises(LeaseholdError):
                await images.ensure("r.example/a:1")

    virtual.run(main)
