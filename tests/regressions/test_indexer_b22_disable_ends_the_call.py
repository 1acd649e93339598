"""B22: disabling a task left its call running, and enabling it again made a second loop.

Seen failing: with ``tasks.c.enabled`` removed from the condition of ``ScheduleStore.renew``, the
claim of a disabled task is renewed for ever.
"""

from __future__ import annotations

from pathlib import Path

from leasehold.core.service import running
from leasehold.schedule.store import NewTask, ScheduleStore


async def test_disable_and_enable(tmp_path: Path) -> None:
    async with running(ScheduleStore.at(tmp_path / "s.db")) as store:
        added = await store.add(NewTask(network="n", chain_id="c", interval=1), enabled=True)
        claimed = await store.claim(added.id, "me", 10.0)
        assert claimed is not None
        assert await store.renew(claimed.id, claimed.epoch, 10.0)
        await store.disable(added.id)
        assert not await store.renew(claimed.id, claimed.epoch, 10.0)
        await store.enable(added.id)
        assert await store.claim(added.id, "other", 10.0) is None  # the first still has its lease
        await store.release(claimed)
        second = await store.claim(added.id, "other", 10.0)
        assert second is not None
        assert not await store.renew(claimed.id, claimed.epoch, 10.0)
