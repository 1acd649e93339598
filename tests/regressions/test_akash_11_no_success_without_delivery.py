"""Defect 11: a manifest that could not be handed on was answered 200 all the same.

Seen failing with ``return_exceptions=True`` in the ``gather`` of ``Acceptance._accept``: the
tenant is told that it was accepted although the lease never got it.
"""

from __future__ import annotations

from typing import Any

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.manifest.testing import OWNER, simple, world


def test_an_append_that_fails_is_no_acceptance(virtual: VirtualClock) -> None:
    async def main() -> None:
        w = world(virtual)
        append = w.log.append

        async def broken(entity: Any, parent: Any, events: Any, **more: Any) -> Any:
            if any(event.type == "manifest.received" for event in events):
                raise LeaseholdError("disk_full", "no space", kind=Kind.UNAVAILABLE)
            return await append(entity, parent, events, **more)

        async with w.up() as service:
            body = await w.deploy(simple())
            lease = await w.win()
            await virtual.sleep(1)
            w.log.append = broken  # type: ignore[method-assign]
            with pytest.raises(LeaseholdError) as caught:
                await service.submit(OWNER, 1, body)
            assert caught.value.code == "disk_full"
            w.log.append = append  # type: ignore[method-assign]
            assert (await service.submit(OWNER, 1, body)).repeated == []
            assert len(await w.received(lease)) == 1

    virtual.run(main)
