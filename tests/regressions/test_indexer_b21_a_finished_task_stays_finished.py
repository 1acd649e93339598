"""B21: a finished task was started again every ten seconds, from a stale copy in memory.

Seen failing: with ``values.update(enabled=False, status="finished")`` removed from
``ScheduleStore.finish``, the task is due again at once.
"""

from __future__ import annotations

from pathlib import Path

from leasehold.core.service import running
from leasehold.model.chain import LatestData
from leasehold.schedule.store import NewTask, ScheduleStore


async def test_finished(tmp_path: Path) -> None:
    async with running(ScheduleStore.at(tmp_path / "s.db")) as store:
        new = NewTask(
            network="n", chain_id="c", interval=1, kind="syncrange",
            config={"height_from": 1, "height_to": 5},
        )  # fmt: skip
        added = await store.add(new, enabled=True)
        claimed = await store.claim(added.id, "me", 10.0)
        assert claimed is not None
        state = LatestData(last_height=5)
        assert await store.finish(
            claimed, state=state, error="", failures=0, due_at=0.0, seconds=0.1, done=True
        )
        assert await store.due(limit=10) == []
        assert await store.claim(added.id, "other", 10.0) is None
        finished = await store.disable(added.id)
        assert finished.status == "finished"
