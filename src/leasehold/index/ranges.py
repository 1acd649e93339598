"""Arithmetic of heights: consecutive runs, windows, what is covered and what is missing.

A range is ``(first, last)``, both included. Everything here is pure and takes ranges in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

Range = tuple[int, int]


def runs(heights: Iterable[int]) -> list[Range]:
    """Heights in any order to ranges of consecutive ones: ``[1, 2, 5]`` to ``[(1, 2), (5, 5)]``."""
    out: list[Range] = []
    for height in sorted(set(heights)):
        if out and height == out[-1][1] + 1:
            out[-1] = (out[-1][0], height)
        else:
            out.append((height, height))
    return out


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Ranges that touch or overlap, joined."""
    out: list[Range] = []
    for first, last in sorted(ranges):
        if out and first <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], last))
        else:
            out.append((first, last))
    return out


def missing(covered: Iterable[Range], first: int, last: int) -> list[Range]:
    """What of ``first`` to ``last`` no range covers."""
    out: list[Range] = []
    at = first
    for start, end in merged(covered):
        if end < at:
            continue
        if start > last:
            break
        if start > at:
            out.append((at, start - 1))
        at = end + 1
    if at <= last:
        out.append((at, last))
    return out


def clipped(covered: Iterable[Range], first: int, last: int) -> list[Range]:
    """What of ``first`` to ``last`` is covered."""
    return [
        (max(start, first), min(end, last))
        for start, end in merged(covered)
        if end >= first and start <= last
    ]


def watermark(covered: Iterable[Range], start: int) -> int:
    """The height up to which everything from ``start`` on is covered; ``start - 1`` if none."""
    for first, last in merged(covered):
        if first <= start <= last:
            return last
    return start - 1


def slices(first: int, last: int, size: int) -> Iterator[Range]:
    """``first`` to ``last`` in pieces of ``size`` heights, the last one clipped."""
    for start in range(first, last + 1, size):
        yield start, min(start + size - 1, last)


def grouped(ranges: Sequence[Range], window: int) -> list[Range]:
    """The original's groupRanges: pieces of ``window`` + 1 heights, neighbours merged.

    First, ranges longer than ``window`` are cut into ``(c, c + window)``; then neighbours are
    merged, also across gaps, while the group's end minus its start is at most ``window``.
    """
    cut: list[Range] = []
    for first, last in sorted(ranges):
        at = first
        while last - at > window:
            cut.append((at, at + window))
            at += window + 1
        cut.append((at, last))
    out: list[Range] = []
    for first, last in cut:
        if out and last - out[-1][0] <= window:
            out[-1] = (out[-1][0], max(out[-1][1], last))
        else:
            out.append((first, last))
    return out
