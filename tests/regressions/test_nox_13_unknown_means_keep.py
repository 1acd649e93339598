"""Defect 13: a lease whose details could not be read looked ended, and its worker was removed.

Seen failing with ``remove(lease)`` for installed leases of state None in ``main`` of
``bundled/decider/decider.star``, and with ``return True`` for a market that does not answer in
``ended`` there.
"""

from __future__ import annotations

from pathlib import Path

from leasehold.core.errors import LeaseholdError
from leasehold.node.ports import LeaseView
from leasehold.node.settings import SystemServices
from leasehold.node.testing import node_in, until


class Market:
    """A market whose answers a test sets. An exception is raised instead of being answered."""

    def __init__(self) -> None:
        self.listed: list[LeaseView] | None = [LeaseView(id="a/1", state="active")]
        self.single: LeaseView | Exception | None = None

    async def leases(self) -> list[LeaseView] | None:
        return self.listed

    async def lease(self, id: str) -> LeaseView | None:
        if isinstance(self.single, Exception):
            raise self.single
        return self.single


async def test_a_worker_goes_only_with_its_lease(tmp_path: Path) -> None:
    market = Market()
    services = SystemServices(enable=("decider",))
    async with node_in(tmp_path, system_services=services, market=market) as node:

        async def workers() -> list[str]:
            id = node.find("decider", spell=True).id
            await until(lambda: not node.spells.is_running(id))
            await node.run_spell("decider")
            return sorted(node.journal.scopes)

        assert await workers() == ["worker:a/1"]
        market.listed = None  # The market does not answer.
        assert await workers() == ["worker:a/1"]
        market.listed = [LeaseView(id="a/1", state=None)]  # Details could not be read.
        assert await workers() == ["worker:a/1"]
        market.listed, market.single = [], RuntimeError("connection reset")  # Left out, no answer.
        assert await workers() == ["worker:a/1"]
        market.single = LeaseholdError("rpc", "malformed answer")
        assert await workers() == ["worker:a/1"]
        market.single = LeaseView(id="a/1", state=None)
        assert await workers() == ["worker:a/1"]
        market.single = LeaseView(id="a/1", state="closed")
        assert await workers() == []
        assert not [i for i in node.journal.instances.values() if i.scope != "host"]
