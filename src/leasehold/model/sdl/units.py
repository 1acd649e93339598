"""Quantities as tenants write them: ``100m`` of CPU, ``512Mi`` of memory, ``24h`` of notice."""

from __future__ import annotations

import math
import re
from decimal import Decimal, InvalidOperation

SUFFIXES = {
    "": 1,
    "k": 10**3,
    "Ki": 2**10,
    "M": 10**6,
    "Mi": 2**20,
    "G": 10**9,
    "Gi": 2**30,
    "T": 10**12,
    "Ti": 2**40,
    "P": 10**15,
    "Pi": 2**50,
    "E": 10**18,
    "Ei": 2**60,
}
"""Bytes of each size suffix."""

SIZE_FORM = "a number with k, Ki, M, Mi, G, Gi, T, Ti, P, Pi, E or Ei"
CPU_FORM = "a number of cores (0.5) or of thousandths (500m)"

_NUMBER = r"[0-9]{1,18}(?:\.[0-9]{1,18})?|\.[0-9]{1,18}"
_SIZE = re.compile(rf"^({_NUMBER})(|k|Ki|[MGTPE]i?)\Z")
_CPU = re.compile(rf"^({_NUMBER})(m?)\Z")
_AMOUNT = re.compile(r"^[0-9]{1,40}(?:\.[0-9]{1,18})?\Z")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

U64 = 2**64 - 1


def size(text: str) -> int | None:
    """Bytes, truncated; None when it is no size."""
    match = _SIZE.match(text)
    if match is None:
        return None
    # In binary floating point, as every other implementation does it: the result is hashed.
    value = float(match[1]) * SUFFIXES[match[2]]
    return None if value > U64 else int(value)


def nearest_size(text: str) -> str:
    """What ``1GB``, ``1gi`` or ``512 Mi`` were probably meant to be; empty when nobody can say."""
    tight = re.sub(r"\s+", "", text)
    match = re.match(rf"^({_NUMBER})([a-zA-Z]*?)(?:[bB](?:ytes)?)?\Z", tight)
    if match is None:
        return ""
    wanted = match[2].lower()
    return next((match[1] + known for known in SUFFIXES if known.lower() == wanted), "")


def cpu(text: str) -> int | None:
    """Thousandths of a core, truncated; None when it is no amount of CPU."""
    match = _CPU.match(text)
    if match is None:
        return None
    value = float(match[1]) * (1 if match[2] else 1000)
    return None if value > U64 else int(value)


def amount(text: str) -> str | None:
    """A price with exactly 18 decimals; None when it is no decimal number."""
    if not _AMOUNT.match(text):
        return None
    try:
        return f"{Decimal(text):.18f}"
    except InvalidOperation:
        return None


def duration(text: str) -> float | None:
    """Seconds of a duration like ``24h`` or ``1h30m``; None when it is none."""
    if text == "0":
        return 0.0
    end, total = 0, 0.0
    for match in _DURATION.finditer(text):
        if match.start() != end:
            return None
        end = match.end()
        total += float(match[1]) * _SECONDS[match[2]]
    return total if end == len(text) and end and math.isfinite(total) else None
