"""Back-off with full jitter: wait a random part of a ceiling that doubles up to a cap."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from leasehold.core.clock import Clock

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Backoff:
    """``first`` and ``cap`` in seconds; ``attempts`` bounds the tries (None: no bound)."""

    first: float = 0.1
    factor: float = 2.0
    cap: float = 30.0
    attempts: int | None = None
    rng: random.Random = field(default_factory=random.Random, compare=False)

    def delay(self, failures: int) -> float:
        """Seconds to wait after the ``failures``-th failure (1 for the first)."""
        ceiling = min(self.cap, self.first * self.factor ** min(failures - 1, 63))
        return self.rng.uniform(0.0, ceiling)


async def retrying(
    action: Callable[[], Awaitable[T]],
    *,
    clock: Clock,
    backoff: Backoff,
    retry_on: Callable[[Exception], bool],
) -> T:
    """Call ``action`` until it succeeds, ``retry_on`` says no, or the attempts are used up."""
    failures = 0
    while True:
        try:
            return await action()
        except Exception as error:
            failures += 1
            if not retry_on(error) or (
                backoff.attempts is not None and failures >= backoff.attempts
            ):
                raise
            await clock.sleep(backoff.delay(failures))
