"""Whether to bid at all: what an order requires against what this provider is.

Whether there is room is the inventory's question, and comes after. All reasons against are told at
once, so that an operator sees why nothing is bid on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping

from leasehold.core.clock import Clock
from leasehold.core.errors import Violation
from leasehold.market.ports import MarketReader
from leasehold.model.resources import GroupSpec, check_groups


class Audits:
    """What auditors have signed for us, asked for again after ``keep`` seconds."""

    def __init__(self, reader: MarketReader, provider: str, clock: Clock, keep: float) -> None:
        self._reader = reader
        self._provider = provider
        self._clock = clock
        self._keep = keep
        self._known: dict[str, tuple[float, frozenset[tuple[str, str]]]] = {}

    async def signed(self, auditor: str) -> frozenset[tuple[str, str]]:
        known = self._known.get(auditor)
        if known is not None and self._clock.monotonic() - known[0] < self._keep:
            return known[1]
        attributes = await self._reader.audited(self._provider, auditor)
        pairs = frozenset((a.key, a.value) for a in attributes)
        if len(self._known) >= MAX_AUDITORS:
            self._known.pop(next(iter(self._known)))
        self._known[auditor] = (self._clock.monotonic(), pairs)
        return pairs

    def forget(self) -> None:
        """Ask again: an auditor has signed or taken back something."""
        self._known.clear()


MAX_AUDITORS = 1_000
"""Auditors remembered; orders are written by strangers."""


async def reasons_against(
    group: GroupSpec, attributes: Mapping[str, str], audits: Audits, max_volumes: int
) -> list[Violation]:
    """Why we do not bid on ``group``; empty when we do. ``attributes`` are our own."""
    against = list(check_groups([group]))
    against += _attributes(group, attributes)
    against += _volumes(group, max_volumes)
    if not against:
        against += [v async for v in _audits(group, audits)]
    return against


def _attributes(group: GroupSpec, ours: Mapping[str, str]) -> Iterator[Violation]:
    for wanted in group.requirements.attributes or ():
        if ours.get(wanted.key) != wanted.value:
            yield Violation(
                "attribute_missing",
                f"the order requires {wanted.key}={wanted.value}",
                "requirements.attributes",
                expected=f"{wanted.key}={wanted.value}",
                got=ours.get(wanted.key),
            )


def _volumes(group: GroupSpec, most: int) -> Iterator[Violation]:
    for at, unit in enumerate(group.resources):
        if len(unit.resource.volumes) > most:
            yield Violation(
                "too_many_volumes",
                f"this provider gives at most {most} volumes to a unit",
                f"resources[{at}].resource.storage",
                expected=f"≤ {most}",
                got=str(len(unit.resource.volumes)),
            )


async def _audits(group: GroupSpec, audits: Audits) -> AsyncIterator[Violation]:
    wanted = {(a.key, a.value) for a in group.requirements.attributes or ()}
    signed_by = group.requirements.signed_by
    for auditor in signed_by.all_of or ():
        if not wanted <= await audits.signed(auditor):
            yield Violation(
                "audit_missing",
                f"the order requires attributes signed by {auditor}",
                "requirements.signed_by.all_of",
                expected=auditor,
            )
    any_of = signed_by.any_of or []
    for auditor in any_of:
        if wanted <= await audits.signed(auditor):
            return
    if any_of:
        yield Violation(
            "audit_missing",
            "the order requires attributes signed by one of several auditors",
            "requirements.signed_by.any_of",
            expected=", ".join(any_of),
        )
