"""What an answer means: does a fetch get on, how long does a failure count, what is to be said.

Durations that a peer tells are taken as they are; where an original agent gives times of its own
clock, they are judged by how long *we* have seen them. Cooldowns of others are honoured for a
while.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.images.coord.messages import Intent, PullResult
from leasehold.images.inflight import IDLE_LIMIT, LARGE_STALL, SMALL_STALL, stall_limit
from leasehold.images.ports import ContentKind, FailureClass, OriginError
from leasehold.model.digest import Digest

SKEW = 5.0
"""Seconds two hosts' clocks may differ before an absolute time from one misleads the other."""

REMEMBERED = 4096
"""Digests whose honour windows and sightings are kept."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for."""

    digest: Digest
    kind: ContentKind
    registry: str
    repository: str
    size: int | None
    authorization: str


class Judge:
    """Remembers what it saw; ``honor_window`` is the longest a cooldown of others counts."""

    def __init__(self, clock: Clock, honor_window: float) -> None:
        self._clock = clock
        self._honor_window = honor_window
        self._honoured: OrderedDict[Digest, float] = OrderedDict()
        self._sighted: OrderedDict[tuple[Digest, str, float], float] = OrderedDict()

    def moves(self, wanted: Wanted, node: str, answer: Intent) -> bool:
        """Whether a fetch gets on: by its silence where told, else by how long we have seen it."""
        if answer.told:
            return answer.silence <= silence_limit(wanted.kind, answer.received)
        limit = stall_limit(wanted.kind, wanted.size)
        started = answer.started_at or 0.0  # absent reads as 1970, as the original's readers do
        if self._clock.now() - started > limit + SKEW:
            return False
        key = (wanted.digest, node, started)
        now = self._clock.monotonic()
        seen = self._sighted.setdefault(key, now)
        while len(self._sighted) > REMEMBERED:
            self._sighted.popitem(last=False)
        return now - seen <= limit

    def remaining(self, answer: Intent | PullResult) -> float:
        """Seconds a failure still counts."""
        if answer.told:
            return answer.remaining
        until = answer.cooldown_until
        return max(0.0, until - self._clock.now()) if until is not None else 0.0

    def cool_down(self, digest: Digest, remaining: float) -> LeaseholdError:
        """The error for a failure that is waited out, from now on without asking."""
        window = min(remaining, self._honor_window)
        if window > 0:
            self._honoured[digest] = self._clock.monotonic() + window
            self._honoured.move_to_end(digest)
            while len(self._honoured) > REMEMBERED:
                self._honoured.popitem(last=False)
        return cooldown(digest, window)

    def honour(self, digest: Digest) -> None:
        """Raise when a cooldown of others is to be waited out still."""
        until = self._honoured.get(digest)
        if until is None:
            return
        remaining = until - self._clock.monotonic()
        if remaining > 0:
            raise cooldown(digest, remaining, honoured=True)
        del self._honoured[digest]


def tells(answer: Intent) -> bool:
    """Whether an answer decides something: who has it, fetches it, or failed at it."""
    return answer.has_cached or answer.in_flight or answer.recently_failed


def silence_limit(kind: ContentKind, received: int = 0) -> float:
    """Seconds without a byte that are a stall; the first byte may queue behind other pulls."""
    if kind is not ContentKind.BLOB:
        return SMALL_STALL
    return IDLE_LIMIT if received else LARGE_STALL


def label(error: LeaseholdError) -> str:
    """The outcome label of a decision that is an error."""
    if isinstance(error, OriginError) and error.failure.trusted:
        return "rule1_failure"
    if error.code == "cooldown":
        return "rule4_cooldown_honored" if error.got else "rule4_cooldown"
    return "exhausted" if error.code == "exhausted" else "error"


def known_failure(digest: Digest, failure: FailureClass, remaining: float) -> OriginError:
    return OriginError(
        failure,
        f"the origin refused {digest} to another node ({failure.name.lower()})",
        retry_after=remaining or None,
    )


def cooldown(digest: Digest, seconds: float, *, honoured: bool = False) -> LeaseholdError:
    return LeaseholdError(
        "cooldown",
        f"fetching {digest} failed just now; the next attempt is in {seconds:.0f} s",
        kind=Kind.UNAVAILABLE,
        retry_after=max(1.0, seconds),
        got="honoured" if honoured else None,
    )


def exhausted(why: str) -> LeaseholdError:
    return LeaseholdError("exhausted", why, kind=Kind.UNAVAILABLE, retry_after=1.0)
