"""CometBFT's query language, and amounts."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.core.errors import LeaseholdError
from leasehold.market.ledger import money
from leasehold.market.ledger.query import parse

EVENTS = {
    "tm.event": ["Tx"],
    "tx.height": ["5"],
    "transfer.amount": ["12uakt", "7.5uakt"],
    "akash.market.v1.EventLeaseClosed.reason": ["20000"],
    "message.action": ["lease.create", "bank.send"],
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tm.event='Tx'", True),
        ("tm.event = 'Tx' AND tx.height=5", True),
        ('tm.event = "NewBlock"', False),
        ("tx.height>4 AND tx.height<=5", True),
        ("tx.height>5", False),
        ("transfer.amount>=12", True),
        ("transfer.amount<7", False),
        ("message.action='bank.send'", True),
        ("message.action CONTAINS 'lease'", True),
        ("message.sender EXISTS", False),
        ("akash.market.v1.EventLeaseClosed.reason=20000", True),
        ("nothing.here='x'", False),
    ],
)
def test_queries(text: str, expected: bool) -> None:
    assert parse(text).matches(EVENTS) is expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tm.event",
        "tm.event =",
        "tm.event 'NewBlock'",
        "tm.event NewBlock = 1",
        "= 'x'",
        "a='x' OR b='y'",
        "a='x' AND",
        "a='x",
        "a > 'x'",
        "a = x",
        "a CONTAINS 5",
        "a=1" + " AND a=1" * 40,
        "a" * 3000 + "=1",
    ],
)
def test_bad_queries_say_where(text: str) -> None:
    with pytest.raises(LeaseholdError, match="failed to parse query") as refused:
        parse(text)
    assert refused.value.code == "bad_query"


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(LeaseholdError):
        parse(text).matches(EVENTS)


def test_bounds_narrow_a_search() -> None:
    query = parse("tx.height>=3 AND tx.height<9")
    assert query.bounds("tx.height") == (3, 8)
    assert parse("a='b'").bounds("tx.height") == (0, None)
    assert parse("tx.height=7").bounds("tx.height") == (7, 7)


@given(st.integers(0, money.MAX_SUPPLY))
def test_amounts_survive_their_text(units: int) -> None:
    assert money.parse(money.text(units)) == units


@pytest.mark.parametrize(
    ("text", "units"),
    [("50.000000000000000000", 50_000_000), ("0.000001", 1), ("12.5", 12_500_000), ("0", 0)],
)
def test_amounts_as_others_write_them(text: str, units: int) -> None:
    assert money.parse(text) == units


@pytest.mark.parametrize("text", ["", "-1", "1e3", "0.0000001", ".5", "5.", "1,5", "NaN", "9" * 14])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(LeaseholdError) as refused:
        money.parse(text)
    assert refused.value.code == "bad_amount"
