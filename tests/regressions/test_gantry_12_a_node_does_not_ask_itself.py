"""The chosen node reads from the origin into its own store; nobody is asked for what it said no to.

In the original a node that chose itself fetched its own result back through its own port, and rule
2 listed peers that had just said "not here" as somewhere to fetch. Return a holder instead of
``local=True`` for ourselves in ``Resolver._follow``, drop ``h.node != self.node`` in
``Neighbourhood.find``, or drop ``if answer.has_cached`` in ``Resolver._holders``, and one of these
fails.
"""

from __future__ import annotations

from leasehold.core.clock import VirtualClock
from leasehold.images.ports import Holder
from leasehold.images.testing import ORDER, Neighbours


def test_chosen_ourselves_we_only_read_from_the_origin(virtual: VirtualClock) -> None:
    async def main() -> None:
        world = Neighbours(virtual, me=ORDER[0])
        found = await world.resolve()
        assert found.local
        assert list(found.holders) == []

    virtual.run(main)


def test_our_own_record_is_not_a_holder(virtual: VirtualClock) -> None:
    async def main() -> None:
        world = Neighbours(virtual)
        world.found = [Holder(world.me, "here:1")]
        found = await world.resolve()
        assert [h.node for h in found.holders] == [ORDER[0]], "the puller, not ourselves"
        assert found.outcome == "rule7_cold_start"

    virtual.run(main)


def test_only_who_has_it_is_a_holder(virtual: VirtualClock) -> None:
    async def main() -> None:
        world = Neighbours(virtual)
        world.says[ORDER[2]] = world.fresh(ORDER[2], has_cached=True)
        found = await world.resolve()
        assert [h.node for h in found.holders] == [ORDER[2]]

    virtual.run(main)
