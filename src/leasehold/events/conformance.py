"""What every log must do: one suite, run against each backend.

``CASES`` maps a name to ``async def case(log)``; each gets an empty, running log and raises
``AssertionError`` where the log breaks its promise. A test parametrises over it::

    @pytest.mark.parametrize("case", CASES.values(), ids=CASES)
    async def test_my_log(case):
        await case(MyLog())
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from leasehold.core.errors import LeaseholdError
from leasehold.events.event import (
    Checkpoint,
    Entity,
    Event,
    Head,
    NewEvent,
    Signal,
    Subscribed,
    Timer,
    WillBlock,
)
from leasehold.events.log import ANY, MAX_EVENT_BYTES, Log, Trimmed, VersionConflict

Case = Callable[[Log], Awaitable[None]]
CASES: dict[str, Case] = {}
T = TypeVar("T")

A = Entity("thing", "a")
B = Entity("thing", "b")
PATIENCE = 10.0
"""Seconds after which something that should have come is declared missing."""


def case(function: Case) -> Case:
    CASES[getattr(function, "__name__", repr(function))] = function
    return function


def new(id: str, data: bytes = b"{}") -> NewEvent:
    return NewEvent(id, "thing.happened", data)


async def history(log: Log, entity: Entity, after: str | None = None) -> list[Event]:
    return [event async for event in log.read(entity, after) if isinstance(event, Event)]


async def soon(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(PATIENCE):
        return await awaitable


async def refused(awaitable: Awaitable[object]) -> LeaseholdError:
    try:
        await awaitable
    except LeaseholdError as error:
        return error
    raise AssertionError("was not refused")


async def until_signal(stream: AsyncIterator[Signal | Subscribed], head: str) -> None:
    """Take signals until one names ``head``."""
    while True:
        item = await soon(anext(stream))
        if isinstance(item, Signal) and item.head == head:
            return


@case
async def appends_are_chained_and_read_back(log: Log) -> None:
    first = await log.append(A, None, [new("1"), new("2", b'{"x":1}')])
    second = await log.append(A, "2", [new("3")])
    events = await history(log, A)
    assert events == first + second
    assert [e.id for e in events] == ["1", "2", "3"]
    assert [e.parent for e in events] == [None, "1", "2"]
    assert [e.seq for e in events] == [1, 2, 3]
    assert events[1].data == b'{"x":1}'
    assert events[1].type == "thing.happened"
    assert await log.head(A) == Head("3", 3)
    assert await log.head(B) is None
    assert await log.last_seq() == 3


@case
async def a_stale_parent_conflicts_and_nothing_is_written(log: Log) -> None:
    await log.append(A, None, [new("1")])
    for parent in (None, "0"):
        error = await refused(
            log.append(
                A,
                parent,
                [new("2")],
                timers=[Timer("t", 1.0)],
                checkpoint=Checkpoint("act", "1", b"s"),
            )
        )
        assert isinstance(error, VersionConflict)
        assert error.head == "1"
    assert [e.id for e in await history(log, A)] == ["1"]
    assert await log.due_timers(10.0) == []
    assert await log.checkpoints("act") == {}
    assert await log.last_seq() == 1


@case
async def of_racing_writers_one_wins(log: Log) -> None:
    await log.append(A, None, [new("0")])

    async def attempt(n: int) -> bool:
        try:
            await log.append(A, "0", [new(f"w{n}")])
        except VersionConflict:
            return False
        return True

    wins = await asyncio.gather(*(attempt(n) for n in range(50)))
    assert sum(wins) == 1
    assert len(await history(log, A)) == 2


@case
async def the_same_ids_are_appended_once(log: Log) -> None:
    first = await log.append(A, None, [new("1"), new("2")])
    assert await log.append(A, None, [new("1"), new("2")]) == first
    await log.append(A, "2", [new("3")])
    assert await log.append(A, None, [new("1"), new("2")]) == first
    assert await log.append(A, ANY, [new("2")]) == first[1:]
    # A known fact and a new one: only the new one is added, after the head.
    both = await log.append(A, ANY, [new("1"), new("4")])
    assert [e.id for e in both] == ["1", "4"]
    assert [e.id for e in await history(log, A)] == ["1", "2", "3", "4"]
    # The same id in another entity is another event.
    await log.append(B, None, [new("1")])
    assert await log.last_seq() == 5


@case
async def racing_duplicates_are_appended_once(log: Log) -> None:
    results = await asyncio.gather(*(log.append(A, ANY, [new("same")]) for _ in range(50)))
    assert all(result == results[0] for result in results)
    assert len(await history(log, A)) == 1


@case
async def a_retry_of_an_older_append_applies_nothing_twice(log: Log) -> None:
    await log.append(A, None, [new("1")], timers=[Timer("t", 1.0)])
    await log.append(A, "1", [new("2")], timers=[Timer("t", None)])
    await log.append(A, None, [new("1")], timers=[Timer("t", 1.0)])
    assert await log.due_timers(10.0) == []
    # A keyed fact said again with ANY is no retry: what comes with it counts.
    await log.append(A, ANY, [new("1")], timers=[Timer("t", 2.0)])
    assert [t.due_at for t in await log.due_timers(10.0)] == [2.0]


@case
async def many_writers_leave_no_gap_in_seq(log: Log) -> None:
    async def writer(n: int) -> None:
        entity = Entity("thing", f"w{n % 7}")
        for i in range(20):
            await log.append(entity, ANY, [new(f"{n}-{i}"), new(f"{n}-{i}b")])

    await asyncio.gather(*(writer(n) for n in range(20)))
    everything = [event async for event in log.read_all(limit=97)]
    assert [e.seq for e in everything] == list(range(1, 801))
    for n in range(7):
        events = await history(log, Entity("thing", f"w{n}"))
        assert [e for e in everything if e.entity.id == f"w{n}"] == events
        assert [e.parent for e in events] == [None, *(e.id for e in events[:-1])]
        for one, two in zip(events[::2], events[1::2], strict=True):
            assert two.id == one.id + "b", "events of one append stay together"


@case
async def reading_goes_on_after_an_event(log: Log) -> None:
    await log.append(A, None, [new(str(i)) for i in range(1200)])
    assert [e.id for e in await history(log, A, "1197")] == ["1198", "1199"]
    assert await history(log, A, "1199") == []
    assert len(await history(log, A)) == 1200
    assert [e.seq async for e in log.read_all(1198)] == [1199, 1200]
    assert await history(log, B) == []


@case
async def an_unknown_tail_is_refused(log: Log) -> None:
    assert isinstance(await refused(history(log, A, "nope")), Trimmed)
    await log.append(A, None, [new("1")])
    assert isinstance(await refused(history(log, A, "nope")), Trimmed)


@case
async def a_watching_reader_blocks_and_goes_on(log: Log) -> None:
    stream = log.read(A, watch=True)
    assert await soon(anext(stream)) == WillBlock(None)
    waiting = asyncio.ensure_future(anext(stream))
    await log.append(A, None, [new("1")])
    event = await soon(waiting)
    assert isinstance(event, Event)
    assert event.id == "1"
    assert await soon(anext(stream)) == WillBlock("1")
    for i in range(2, 30):
        await log.append(A, ANY, [new(str(i))])
    seen: list[str] = []
    while True:
        item = await soon(anext(stream))
        if isinstance(item, WillBlock):
            if item.tail == "29":
                break
            continue
        seen.append(item.id)
    assert seen == [str(i) for i in range(2, 30)]
    await stream.aclose()  # type: ignore[attr-defined]


@case
async def signals_start_where_they_say(log: Log) -> None:
    await log.append(A, None, [new("1")])
    stream = log.signals()
    assert await soon(anext(stream)) == Subscribed(1)
    waiting = asyncio.ensure_future(anext(stream))
    await log.append(B, None, [new("1")])
    assert await soon(waiting) == Signal(B, "1", 2)
    await stream.aclose()  # type: ignore[attr-defined]


@case
async def signals_replay_what_changed_since(log: Log) -> None:
    await log.append(A, None, [new("1")])
    await log.append(B, None, [new("1")])
    await log.append(B, "1", [new("2")])
    stream = log.signals(1)
    assert await soon(anext(stream)) == Subscribed(1)
    assert await soon(anext(stream)) == Signal(B, "2", 3)
    await log.append(A, "1", [new("2")])
    await until_signal(stream, "2")
    await stream.aclose()  # type: ignore[attr-defined]


@case
async def signals_coalesce_but_never_lose_the_last(log: Log) -> None:
    stream = log.signals()
    assert isinstance(await soon(anext(stream)), Subscribed)
    for i in range(200):
        await log.append(A, ANY, [new(str(i))])
    await until_signal(stream, "199")
    await stream.aclose()  # type: ignore[attr-defined]


@case
async def timers_fire_in_order_and_stay_until_replaced(log: Log) -> None:
    await log.append(A, None, [new("1")], timers=[Timer("x", 20.0), Timer("y", 10.0)])
    await log.append(B, None, [], timers=[Timer("x", 30.0)])
    assert await log.next_timer() == 10.0
    assert [(t.entity, t.name) for t in await log.due_timers(25.0)] == [(A, "y"), (A, "x")]
    assert [(t.entity, t.name) for t in await log.due_timers(99.0, limit=1)] == [(A, "y")]
    await log.append(A, "1", [], timers=[Timer("y", None), Timer("x", 40.0)])
    assert [(t.entity, t.due_at) for t in await log.due_timers(99.0)] == [(B, 30.0), (A, 40.0)]
    assert await log.head(B) is None
    assert await log.entities("thing") == [(A, Head("1", 1))]


@case
async def a_timer_is_cancelled_only_as_it_was(log: Log) -> None:
    await log.append(A, ANY, [], timers=[Timer("t", 10.0)])
    await log.append(A, ANY, [], timers=[Timer("t", 20.0)])
    await log.append(A, ANY, [], timers=[Timer("t", None, was=10.0)])
    await log.append(A, ANY, [], timers=[Timer("t", 99.0, was=10.0)])
    assert [t.due_at for t in await log.due_timers(99.0)] == [20.0]
    await log.append(A, ANY, [], timers=[Timer("t", 30.0, was=20.0)])
    await log.append(A, ANY, [], timers=[Timer("gone", 30.0, was=20.0)])
    assert [(t.name, t.due_at) for t in await log.due_timers(99.0)] == [("t", 30.0)]
    await log.append(A, ANY, [], timers=[Timer("t", None, was=30.0)])
    assert await log.next_timer() is None


@case
async def setting_a_timer_is_signalled(log: Log) -> None:
    stream = log.signals()
    assert isinstance(await soon(anext(stream)), Subscribed)
    await log.append(A, ANY, [], timers=[Timer("t", 5.0)])
    assert await soon(anext(stream)) == Signal(A, "", 0)
    await log.append(A, None, [new("1")])
    assert await soon(anext(stream)) == Signal(A, "1", 1)
    await log.append(A, "1", [], timers=[Timer("u", 7.0)])
    assert await soon(anext(stream)) == Signal(A, "1", 1)
    assert await log.next_timer(after=5.0) == 7.0
    assert await log.next_timer(after=7.0) is None
    assert await log.changed(0) == [Signal(A, "1", 1)]
    assert await log.changed(1) == []
    await stream.aclose()  # type: ignore[attr-defined]


@case
async def timers_of_one_append_apply_in_order(log: Log) -> None:
    await log.append(A, ANY, [], timers=[Timer("t", 1.0), Timer("t", None), Timer("t", 3.0)])
    assert [t.due_at for t in await log.due_timers(9.0)] == [3.0]


@case
async def checkpoints_are_kept_per_activity_and_deleted(log: Log) -> None:
    await log.append(A, None, [new("1")], checkpoint=Checkpoint("one", "1", b"s1", 1))
    await log.append(A, "1", [], checkpoint=Checkpoint("two", None, b""))
    await log.append(A, "1", [], checkpoint=Checkpoint("one", "1", b"s2", 1))
    assert await log.checkpoints("one") == {A: Checkpoint("one", "1", b"s2", 1)}
    assert await log.checkpoints("two") == {A: Checkpoint("two", None, b"", 0)}
    await log.append(A, "1", [], checkpoint=Checkpoint("one", "1", None))
    assert await log.checkpoints("one") == {}


@case
async def entities_are_listed_by_prefix(log: Log) -> None:
    for name in ("a/1", "a/2", "a_1", "b/1", "a/%"):
        await log.append(Entity("k", name), None, [new("1")])
    await log.append(Entity("other", "a/1"), None, [new("1")])
    assert {e.id for e, _ in await log.entities("k")} == {"a/1", "a/2", "a_1", "b/1", "a/%"}
    assert {e.id for e, _ in await log.entities("k", "a/")} == {"a/1", "a/2", "a/%"}
    assert await log.entities("k", "c") == []


@case
async def a_trimmed_history_starts_at_its_snapshot(log: Log) -> None:
    await log.append(A, None, [new(str(i)) for i in range(10)])
    assert await log.trim(A, "nope") == 0
    assert await log.trim(A, "7") == 7
    assert await log.trim(A, "7") == 0
    assert [e.id for e in await history(log, A)] == ["7", "8", "9"]
    assert [e.id for e in await history(log, A, "6")] == ["7", "8", "9"]
    assert [e.id for e in await history(log, A, "8")] == ["9"]
    assert isinstance(await refused(history(log, A, "3")), Trimmed)
    await log.append(A, "9", [new("10")])
    assert await log.head(A) == Head("10", 11)
    assert [e.seq async for e in log.read_all()] == [8, 9, 10, 11]
    stream = log.signals(0)
    assert await soon(anext(stream)) == Subscribed(0)
    assert await soon(anext(stream)) == Signal(A, "10", 11)
    await stream.aclose()  # type: ignore[attr-defined]


@case
async def what_an_activity_knows_of_each_entity(log: Log) -> None:
    await log.append(A, None, [new("1"), new("2")], checkpoint=Checkpoint("act", "1", b"s", 1))
    await log.append(B, None, [new("b")])
    await log.append(Entity("thing", "c"), ANY, [], checkpoint=Checkpoint("act", None, b"", 0))
    await log.append(Entity("thing", "d"), ANY, [], checkpoint=Checkpoint("other", None, b"", 0))
    await log.append(Entity("other", "a"), None, [new("o")])
    found = [tuple(row) async for page in log.standing("act", "thing") for row in page]
    assert sorted(found) == [
        ("a", "2", "1", b"s"),
        ("b", "b", None, None),
        ("c", None, None, b""),
    ]


@case
async def oversized_input_is_refused(log: Log) -> None:
    big = new("1", b"x" * (MAX_EVENT_BYTES + 1))
    assert (await refused(log.append(A, None, [big]))).code == "event_too_large"
    many = [new(str(i)) for i in range(10_001)]
    assert (await refused(log.append(A, None, many))).code == "append_too_large"
    assert (await refused(log.append(A, None, [new("1"), new("1")]))).code == "event_id_twice"
    assert await log.last_seq() == 0


@case
async def odd_names_and_bytes_survive(log: Log) -> None:
    odd = Entity("kind", 'quote" \\ slash/ü/\U0001f600')
    await log.append(odd, None, [new("id'\"\\", bytes(range(256)))])
    (event,) = await history(log, odd)
    assert event.entity == odd
    assert event.data == bytes(range(256))
    assert await log.append(odd, None, [new("id'\"\\", bytes(range(256)))]) == [event]
    for name in ("", "nul\0"):
        error = await refused(log.append(Entity("kind", name), None, [new("1")]))
        assert error.code == "event_name_invalid"


@case
async def what_cannot_be_stored_harms_only_its_caller(log: Log) -> None:
    odd = Checkpoint("act", None, b"s", 1 << 80)
    results = await asyncio.gather(
        log.append(A, ANY, [new("1")]),
        log.append(B, ANY, [], checkpoint=odd),
        log.append(A, ANY, [new("2")]),
        return_exceptions=True,
    )
    assert not isinstance(results[0], BaseException)
    assert not isinstance(results[2], BaseException)
    assert {e.id for e in await history(log, A)} == {"1", "2"}


@case
async def a_cancelled_caller_harms_nobody(log: Log) -> None:
    tasks = [asyncio.ensure_future(log.append(A, ANY, [new(str(i))])) for i in range(40)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)
    done = {task.result()[0].id for task in tasks[1::2]}
    assert done <= {e.id for e in await history(log, A)}


@case
async def a_closed_log_refuses(log: Log) -> None:
    await log.append(A, None, [new("1")])
    await log.close()
    error = await refused(log.append(A, "1", [new("2")]))
    assert error.code == "not_running"
