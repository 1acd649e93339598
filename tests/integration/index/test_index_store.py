"""The store on SQLite and on PostgreSQL: whole heights, once, and what can be found of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from leasehold.core.errors import LeaseholdError
from leasehold.core.metrics import REGISTRY
from leasehold.core.service import running
from leasehold.index import store as store_module
from leasehold.index.ranges import merged, missing, runs, watermark
from leasehold.index.search import Search, find, statement
from leasehold.index.store import Store
from leasehold.model.chain import (
    Account,
    Amount,
    Attribute,
    Block,
    Event,
    IndexedBlock,
    SubEvent,
    Transaction,
    TransactionEvent,
    Transfer,
)


def height(number: int, *txs: dict[str, Any], mark: str = "") -> IndexedBlock:
    time = f"2026-01-01T00:{number // 60:02d}:{number % 60:02d}.123456789Z"
    block = Block(hash=f"B{number}{mark}", height=number, time=time, chain_id="c", num_txs=len(txs))
    out = []
    for index, tx in enumerate(txs):
        sender, recipient = tx.get("sender", "alice"), tx.get("recipient", "bob")
        attributes = (Attribute("sender", sender), Attribute("recipient", recipient))
        sub = SubEvent(
            type=(tx.get("type", "send"),),
            sender=(Transfer(Account(sender), (Amount("5uakt", "uakt", 5),)),),
        )
        out.append(
            Transaction(
                hash=f"T{number}-{index}",
                block_hash=block.hash,
                height=number,
                index=index,
                chain_id="c",
                time=time,
                memo=tx.get("memo", ""),
                raw=b"raw\0bytes",
                raw_log=b"log",
                raw_events=(Event("transfer", attributes),),
                events=(TransactionEvent(id="0", kind=tx.get("type", "send"), sub=(sub,)),),
                has_errors=tx.get("failed", False),
            )
        )
    events = (Event("closed", (Attribute("height", str(number)),)),)
    return IndexedBlock(block=block, transactions=tuple(out), events=events)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'index.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    async with running(Store(store_url)) as started:
        yield started


async def read(store: Store, first: int = 1, last: int = 100) -> list[IndexedBlock]:
    return [block async for block in store.blocks("n", "c", first, last)]


async def test_what_was_written_is_read_and_writing_again_changes_nothing(store: Store) -> None:
    heights = [height(n, {"memo": "hi"}, {"type": "vote"}) for n in range(1, 8)]
    assert await store.write("n", "c", heights[:5]) == 5
    assert await store.write("n", "c", heights) == 2
    assert await store.write("n", "c", heights) == 0
    assert await read(store) == heights
    assert await store.coverage("n", "c") == [(1, 7)]
    with pytest.raises(LeaseholdError) as refused:
        await store.write("n", "c", [height(9), height(3, mark="other")])
    assert refused.value.code == "block_conflict"
    assert await store.coverage("n", "c") == [(1, 7)]  # nothing of that write is there
    await store.forget("n", "c", 3, 4)
    assert await store.coverage("n", "c") == [(1, 2), (5, 7)]
    assert [b.height for b in await read(store)] == [1, 2, 5, 6, 7]
    await store.write("n", "c", heights)
    assert await read(store) == heights


async def test_two_writers_of_the_same_range_leave_the_rows_of_one(store: Store) -> None:
    heights = [height(n, {"memo": f"m{n}"}) for n in range(1, 61)]
    async with running(Store(store.url)) as other:

        async def write(by: Store, order: list[IndexedBlock], size: int) -> None:
            for at in range(0, len(order), size):
                await by.write("n", "c", order[at : at + size])

        await asyncio.gather(write(store, heights, 7), write(other, heights[::-1], 5))
    assert await read(store) == heights
    assert await store.coverage("n", "c") == [(1, 60)]
    found = await find(store, Search(network="n", sender=["alice"], limit=1000))
    assert len(found.transactions) == 60


async def test_a_height_that_cannot_be_written_fails_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = store_module.rows_of

    def broken(chain: int, heights: Any) -> Any:
        rows = original(chain, heights)
        if any(block.height == 5 for block in heights):
            rows.terms.append(rows.terms[0])  # the same key twice
        return rows

    monkeypatch.setattr(store_module, "rows_of", broken)
    await store.chain("n", "c")
    outcomes = await asyncio.gather(
        *(store.write("n", "c", [height(n, {})]) for n in range(1, 9)), return_exceptions=True
    )
    assert [outcome == 1 for outcome in outcomes] == [n != 5 for n in range(1, 9)]
    assert await store.coverage("n", "c") == [(1, 4), (6, 8)]


async def test_search(store: Store) -> None:
    await store.write(
        "n",
        "c",
        [
            height(1, {"sender": "carol", "memo": "Rent for May; it's (paid)!"}),
            height(2, {"type": "vote"}, {"recipient": "dave", "failed": True}),
            height(3),
            height(5, {"sender": "dave", "recipient": "carol"}),
        ],
    )

    async def hashes(**conditions: Any) -> list[str]:
        found = await find(store, Search(network="n", **conditions))
        return [tx.hash for tx in found.transactions]

    assert await hashes() == ["T5-0", "T2-1", "T2-0", "T1-0"]
    assert await hashes(height=2) == ["T2-1", "T2-0"]
    assert await hashes(after_height=1, before_height=5) == ["T2-1", "T2-0"]
    assert await hashes(hash="t1-0") == ["T1-0"]
    assert await hashes(block_hash="B5") == ["T5-0"]
    assert await hashes(type=["vote"]) == ["T2-0"]
    assert await hashes(type=["send", "error"]) == ["T2-1"]
    assert await hashes(account=["carol"]) == ["T5-0", "T1-0"]
    assert await hashes(account=["carol", "dave"]) == ["T5-0"]
    assert await hashes(sender=["dave"]) == ["T5-0"]
    assert await hashes(receiver=["dave"]) == ["T2-1"]
    assert await hashes(memo="may 'rent' & | !") == ["T1-0"]  # any text is a question
    assert await hashes(memo="june") == []
    assert await hashes(after_time="2026-01-01T00:00:02.2Z") == ["T5-0"]
    assert await hashes(before_time="2026-01-01T00:00:02Z") == ["T1-0"]
    assert await hashes(limit=1, offset=1) == ["T2-1"]
    assert await hashes(chain_ids=["other"]) == []
    found = await find(store, Search(network="n", hash="T1-0", with_raw=True))
    assert (found.transactions[0].raw, found.transactions[0].raw_log) == (b"raw\0bytes", b"")
    assert found.covered == {"c": [(1, 3), (5, 5)]}
    with pytest.raises(LeaseholdError) as wrong:
        await hashes(height=1, after_height=3, before_height=2, after_time="soon")
    assert len(wrong.value.violations) == 3


SEARCHES: list[dict[str, Any]] = [
    {"hash": "T700-0"}, {"height": 700}, {"after_height": 700, "before_height": 720},
    {"sender": ["s700"]}, {"receiver": ["r7"], "type": ["send"]}, {"account": ["s9"]},
    {"memo": "rent m700"}, {"block_hash": "B700"},
    {"after_time": "2026-01-01T00:05:00Z", "before_time": "2026-01-01T00:06:00Z"},
]  # fmt: skip


async def test_no_search_walks_the_table(store: Store) -> None:
    """What the database itself says about how it would look, among 4,000 transactions."""
    heights = [
        height(
            n,
            {"sender": f"s{n}", "recipient": f"r{n % 50}", "memo": f"rent m{n}"},
            {"sender": f"s{n % 100}", "recipient": f"r{n}", "type": "vote"},
        )
        for n in range(1, 2001)
    ]
    await store.write("n", "c", heights)
    async with store.engine.connect() as connection:
        await connection.exec_driver_sql("ANALYZE")
        for conditions in SEARCHES:
            query = statement(Search(network="n", **conditions), [1])
            sql = str(
                query.compile(dialect=store.engine.dialect, compile_kwargs={"literal_binds": True})
            )
            explain = "EXPLAIN QUERY PLAN" if store.sqlite else "EXPLAIN"
            plan = [str(row) for row in await connection.exec_driver_sql(f"{explain} {sql}")]
            walks = [line for line in plan if "'SCAN" in line or "Seq Scan" in line]
            assert not walks, (conditions, plan)
    minute = Search(network="n", **SEARCHES[-1], limit=1000)
    found = (await find(store, minute)).transactions
    assert {tx.height for tx in found} == set(range(300, 360))


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(
        st.tuples(st.booleans(), st.integers(1, 30), st.integers(0, 8)), min_size=1, max_size=12
    )
)
def test_coverage_is_exactly_what_is_stored(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, int, int]]
) -> None:
    async def run() -> None:
        model: set[int] = set()
        path = tmp_path_factory.mktemp("coverage") / "index.db"
        async with contextlib.AsyncExitStack() as stack:
            store = await stack.enter_async_context(running(Store.at(path)))
            for writes, first, length in steps:
                numbers = range(first, first + length + 1)
                if writes:
                    await store.write("n", "c", [height(n) for n in numbers])
                    model.update(numbers)
                else:
                    await store.forget("n", "c", numbers[0], numbers[-1])
                    model.difference_update(numbers)
                covered = await store.coverage("n", "c")
                assert covered == runs(model)
                assert {b.height for b in await read(store)} == model
                gaps = missing(covered, 1, 40)
                assert merged([*gaps, *covered]) == ([(1, 40)])
                mark = watermark(covered, 1)
                assert mark + 1 not in model and all(n in model for n in range(1, mark + 1))

    asyncio.run(run())


async def test_a_database_that_does_not_answer_is_said_to(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leasehold.index.store.HEALTH_INTERVAL", 0.02)
    store = Store(store_url)
    kind = "sqlite" if "sqlite" in store_url else "postgresql"

    def size() -> float:
        name = Path(store.engine.url.database or "").name
        return (
            REGISTRY.get_sample_value("health_database_size", {"database_type": kind, "name": name})
            or 0.0
        )

    async with running(store), asyncio.timeout(10):
        while size() < 4096:
            await asyncio.sleep(0.01)
        assert store.problem is None
        with monkeypatch.context() as patch:

            def away(*_: object) -> None:
                raise ConnectionRefusedError("away")

            patch.setattr(AsyncEngine, "connect", away)
            while store.problem is None:
                await asyncio.sleep(0.01)
            assert "does not answer: ConnectionRefusedError" in store.problem
        while store.problem is not None:
            await asyncio.sleep(0.01)
