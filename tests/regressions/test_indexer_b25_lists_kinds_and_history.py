"""B25: the limit was used as offset, unknown kinds were accepted, history grew without bound, and
the version and chain id of a state changed places.

Seen failing: with ``.offset(offset)`` replaced by ``.offset(limit)`` in ``history``, the wrong
results come; without the check of ``KINDS`` the kind is accepted; without the ``delete`` in
``finish`` 30 results are kept.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.model.chain import LatestData
from leasehold.schedule.store import NewTask, ScheduleStore


async def test_store(tmp_path: Path) -> None:
    async with running(ScheduleStore.at(tmp_path / "s.db", keep_runs=10)) as store:
        with pytest.raises(LeaseholdError) as unknown:
            await store.add(NewTask(network="n", chain_id="c", interval=1, kind="nope"))
        assert (unknown.value.path, unknown.value.expected) == (
            "kind",
            "one of lastdata, syncrange",
        )
        new = NewTask(network="n", chain_id="c", interval=1, version="0.0.2")
        added = await store.add(new, enabled=True)
        with pytest.raises(LeaseholdError) as again:
            await store.add(new)
        assert again.value.code == "task_exists"
        for height in range(30):
            claimed = await store.claim(added.id, "me", 10.0)
            assert claimed is not None
            state = LatestData(chain_id="c", version="0.0.2", last_height=height)
            await store.finish(claimed, state=state, error="", failures=0, due_at=0.0, seconds=0.0)
        heights = [run.height for run in await store.history(added.id)]
        assert heights == list(range(29, 19, -1))
        assert [r.height for r in await store.history(added.id, limit=3, offset=2)] == [27, 26, 25]
        kept = await store.get(added.id)
        assert (kept.state.chain_id, kept.state.version, kept.chain_id) == ("c", "0.0.2", "c")


def test_a_key_that_is_not_known_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"network":"n","chainID":"c","interval":"1s"}', type=NewTask)
