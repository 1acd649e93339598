"""Money is exact: integers of the smallest unit, which is a millionth of a base unit.

Prices may have up to six decimals of a base unit a charged block; with millionths as the unit they
are integers, and so is everything that follows from them. Text is decimal, as in ``"12.5"``.
"""

from __future__ import annotations

import re

import msgspec

from leasehold.core.errors import LeaseholdError

SCALE = 1_000_000
"""Smallest units in one base unit."""

MAX_SUPPLY = 10**12 * SCALE
"""Most smallest units of one denomination that may exist: they fit 63 bits."""

_AMOUNT = re.compile(r"^([0-9]{1,13})(?:\.([0-9]{1,18}))?$")
_DENOM = re.compile(r"^[a-zA-Z][a-zA-Z0-9/:._-]{1,127}$")


class Coin(msgspec.Struct, frozen=True):
    """``amount`` base units of ``denom`` in decimal text, like ``"5.5"``."""

    denom: str
    amount: str


def parse(amount: str, path: str = "amount") -> int:
    """Decimal text of base units to smallest units; more than six decimals must be zeros."""
    match = _AMOUNT.match(amount)
    fraction = (match[2] or "") if match else ""
    if match is None or fraction[6:].strip("0"):
        raise LeaseholdError(
            "bad_amount",
            f"{amount[:40]!r} is no amount: write base units with at most six decimals, like 12.5",
            path=path,
            expected="decimal ≥ 0",
            got=amount[:40],
        )
    return int(match[1]) * SCALE + int(fraction[:6].ljust(6, "0"))


def text(units: int) -> str:
    """Smallest units to the shortest decimal text of base units."""
    whole, fraction = divmod(units, SCALE)
    return f"{whole}.{fraction:06d}".rstrip("0") if fraction else str(whole)


def check_denom(denom: str, path: str = "denom") -> str:
    """``denom``, or LeaseholdError ``bad_denom``."""
    if not _DENOM.match(denom):
        raise LeaseholdError(
            "bad_denom",
            f"{denom[:40]!r} is no denomination",
            path=path,
            expected="2 to 128 of letters, digits and / : . _ -",
            got=denom[:40],
        )
    return denom
