"""What a lease's story says of a failure: whether anybody has to do something."""

from __future__ import annotations

import pytest

from leasehold.events.event import Entity, NewEvent
from leasehold.events.log import ANY
from leasehold.events.memory import MemoryLog
from leasehold.gateway.timeline import timeline
from leasehold.model.events.lease import DeployFailed
from leasehold.model.market import LeaseId

LEASE = LeaseId("akash1owner", 1, 1, 1, "akash1provider")


@pytest.mark.parametrize("final", [False, True])
async def test_a_failure_that_passes_by_itself_says_so(final: bool):
    log = MemoryLog()
    failed = DeployFailed(
        id=LEASE, hash="ab", code="registry_unreachable", message="no answer", final=final
    )
    await log.append(Entity("lease", str(LEASE)), ANY, [NewEvent.of(failed)])
    story = await timeline(log, LEASE)
    assert story.state == "failed"
    assert story.unmet == ("no answer" if final else "no answer; it is tried again by itself")
