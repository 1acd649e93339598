"""Time as a dependency: the system's clock, and a virtual one for tests and simulators.

``VirtualClock`` comes with an event loop whose time jumps to the next timer as soon as nothing
is left to run, so a test of "five minutes later" takes microseconds, is deterministic, and also
covers ``asyncio.sleep`` and ``asyncio.timeout`` of code that never heard of a clock.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """Seconds, always. ``now`` is UTC since 1970; ``monotonic`` never goes back."""

    def now(self) -> float: ...

    def monotonic(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...

    def timeout(self, seconds: float | None) -> asyncio.Timeout: ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))

    def timeout(self, seconds: float | None) -> asyncio.Timeout:
        return asyncio.timeout(seconds)


class VirtualClock:
    """Time that passes only when everybody waits. Use it through :meth:`run`.

    ``start`` is the UTC second at which the run begins (default 2026-01-01T00:00:00Z).
    """

    def __init__(self, start: float = 1_767_225_600.0) -> None:
        self.start = start
        self._loop = _VirtualLoop()

    def now(self) -> float:
        return self.start + self._loop.time()

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))

    def timeout(self, seconds: float | None) -> asyncio.Timeout:
        return asyncio.timeout(seconds)

    def jump(self, seconds: float) -> None:
        """Move wall-clock time without firing timers, as when somebody sets the system's clock."""
        self.start += seconds

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run ``main()`` to its end in virtual time and return its result."""
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            return runner.run(main())


class _VirtualSelector(selectors.DefaultSelector):
    """Never blocks while a timer is pending: reports the wait to the loop instead."""

    waited: Callable[[float], None]
    threads = 0
    """Work given to threads and not done: it takes no virtual time."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None or self.threads:
            # Only another thread or a socket can wake us: really wait, but time stands still.
            return super().select(None)
        self.waited(timeout)
        return []


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual_now = 0.0
        selector = _VirtualSelector()
        selector.waited = self._advance
        self._waiting = selector
        super().__init__(selector)
        # A century in seconds leaves a float about half a microsecond: with a finer resolution a
        # timer that is exactly due would never count as due.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._virtual_now

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        future = super().run_in_executor(executor, func, *args)
        self._waiting.threads += 1
        future.add_done_callback(self._thread_done)
        return future

    def _thread_done(self, _future: asyncio.Future[Any]) -> None:
        self._waiting.threads -= 1

    def _advance(self, seconds: float) -> None:
        self._virtual_now += seconds
