"""B16: the missing-check stopped early, listed edges twice and missed wrong transaction counts.

Seen failing: with the comparison of ``len(transactions)`` with ``block.num_txs`` removed from
``Gathering._take``, a height with too few transactions counts as stored.
"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.core.errors import LeaseholdError
from leasehold.index.ranges import grouped, merged, missing, runs
from leasehold.index.sync import Gathering
from leasehold.model.chain import Block, Transaction


@given(st.sets(st.integers(1, 60)), st.integers(1, 60), st.integers(0, 60))
def test_missing_against_a_model(stored: set[int], first: int, length: int) -> None:
    last = first + length
    gaps = missing(runs(stored), first, last)
    assert [h for a, b in gaps for h in range(a, b + 1)] == [
        h for h in range(first, last + 1) if h not in stored
    ]
    assert gaps == merged(gaps)  # no edge twice, none touching


def test_a_height_with_too_few_transactions_is_not_whole() -> None:
    gathering = Gathering(1, 2)
    block = Block(hash="B", height=1, time="2026-01-01T00:00:00Z", num_txs=2)
    transaction = Transaction(hash="T", block_hash="B", height=1)
    assert gathering.add("Block", msgspec.json.encode(block)) == []
    assert gathering.add("Transaction", msgspec.json.encode(transaction)) == []
    with pytest.raises(LeaseholdError, match="1 of 2 transactions"):
        gathering.finish()


@pytest.mark.parametrize(
    ("ranges", "window", "expected"),
    [
        ([(1, 10)], 2, [(1, 3), (4, 6), (7, 9), (10, 10)]),
        ([(0, 100)], 20, [(0, 20), (21, 41), (42, 62), (63, 83), (84, 100)]),
        ([(1, 3), (4, 6), (7, 8)], 5, [(1, 6), (7, 8)]),
        ([(1, 2), (50, 52)], 10, [(1, 2), (50, 52)]),
    ],
)
def test_windows(
    ranges: list[tuple[int, int]], window: int, expected: list[tuple[int, int]]
) -> None:
    assert grouped(ranges, window) == expected


@pytest.mark.parametrize(
    ("heights", "expected"),
    [([], []), ([5], [(5, 5)]), ([3, 1, 2], [(1, 3)]), ([9, 1, 2, 8], [(1, 2), (8, 9)])],
)
def test_runs(heights: list[int], expected: list[tuple[int, int]]) -> None:
    assert runs(heights) == expected
