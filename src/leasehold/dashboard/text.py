"""Numbers, bytes, times and names for people. Times are UTC: a log is compared with other logs."""

from __future__ import annotations

import datetime as dt
from typing import Any

from leasehold.model.market import LeaseId

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(count: float | None) -> str:
    """Bytes: ``1.5 GiB``; a dash when unknown."""
    if count is None:
        return "–"
    value, unit = float(count), 0
    while abs(value) >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {UNITS[unit]}" if unit == 0 else f"{value:.1f} {UNITS[unit]}"


def number(value: float | None, digits: int = 0) -> str:
    """With thousands apart: ``12 345``."""
    return "–" if value is None else f"{value:,.{digits}f}".replace(",", "\u202f")


def cores(milli: float | None) -> str:
    """Thousandths of a CPU: ``1.5 CPU``."""
    return "–" if milli is None else f"{milli / 1000:.3g} CPU"


def duration(ms: float) -> str:
    """``12.3 ms``, ``1.25 s``, ``3 min 5 s``, ``2 h 4 min``, ``5 d 3 h``."""
    if ms < 1000:
        return f"{ms:.1f} ms"
    seconds = ms / 1000
    if seconds < 120:
        return f"{seconds:.2f} s"
    for name, length, smaller, part in (
        ("min", 60, "s", 1),
        ("h", 3600, "min", 60),
        ("d", 86400, "h", 3600),
    ):
        if seconds < length * (60 if name == "min" else 24 if name == "h" else 10**9):
            whole, rest = divmod(int(seconds), length)
            return f"{whole} {name} {rest // part} {smaller}"
    return f"{seconds:.0f} s"


def time(at: float | None) -> str:
    """``14:03:22`` of today, else with the date."""
    if not at:
        return "–"
    moment = dt.datetime.fromtimestamp(at, dt.UTC)
    today = dt.datetime.now(dt.UTC).date()
    return moment.strftime("%H:%M:%S" if moment.date() == today else "%Y-%m-%d %H:%M:%S")


def precise(at: float) -> str:
    """With milliseconds."""
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%H:%M:%S.%f")[:-3]


def full(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def address(text: str) -> str:
    """``akash1ab…wxyz``."""
    return f"{text[:9]}…{text[-4:]}" if len(text) > 16 else text


def lease(id: str) -> str:
    """``akash1ab…wxyz/12``, with group and order where they are not 1."""
    found = LeaseId.parse(id)
    short = f"{address(found.owner)}/{found.dseq}"
    if (found.gseq, found.oseq) != (1, 1):
        short += f"/{found.gseq}/{found.oseq}"
    return short


def digest(text: str) -> str:
    """``sha256:0123456789ab``."""
    algorithm, colon, value = text.partition(":")
    return f"{algorithm}:{value[:12]}" if colon else text[:12]


def plain(value: Any) -> str:
    """A scalar as one would say it."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
