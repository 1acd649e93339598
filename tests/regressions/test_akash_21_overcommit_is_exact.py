"""Overcommit per cent was divided before it multiplied, in integers: anything below 100 per cent
was none.

Seen failing with ``offered`` returning ``int(amount * share) * (1 + overcommit_percent // 100)``.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from leasehold.deploy.inventory import offered


def test_half_more_is_half_more() -> None:
    assert offered(4000, 1.0, 50) == 6000
    assert offered(3, 1.0, 50) == 4
    assert offered(1000, 1.0, 1) == 1010
    assert offered(1000, 0.5, 0) == 500


@given(st.integers(0, 2**50), st.integers(0, 1000))
def test_never_less_than_asked_by_a_whole_unit(amount: int, percent: int) -> None:
    exact = amount * (100 + percent) / 100
    assert amount <= offered(amount, 1.0, percent) <= exact + 1
    assert exact - offered(amount, 1.0, percent) < 1 + exact * 1e-12
