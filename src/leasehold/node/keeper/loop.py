"""One thread, one ``selectors`` loop: descriptors, timers, signals. Standard library only."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

Action = Callable[..., None]


class Loop:
    """Everything happens in it, one thing after the other."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.running = True
        self._timers: list[tuple[float, int, Action, tuple[Any, ...]]] = []
        self._serial = itertools.count()

    def on_signal(self, action: Action) -> None:
        """Call ``action`` after any signal that has a handler."""
        wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)

        def woken() -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(wake_r, 4096)
            action()

        self.when_readable(wake_r, woken)

    def when_readable(self, fd: Any, action: Action) -> None:
        self.selector.register(fd, selectors.EVENT_READ, lambda _mask: action())

    def forget(self, fd: Any) -> None:
        self.selector.unregister(fd)

    def later(self, seconds: float, action: Action, *args: Any) -> None:
        due = time.monotonic() + seconds
        heapq.heappush(self._timers, (due, next(self._serial), action, args))

    def turn(self) -> None:
        """Wait for something to do, and do all that is due."""
        timeout = None
        if self._timers:
            timeout = max(0.0, self._timers[0][0] - time.monotonic())
        for key, mask in self.selector.select(timeout):
            self._guarded(key.data, mask)
        while self._timers and self._timers[0][0] <= time.monotonic():
            _, _, action, args = heapq.heappop(self._timers)
            self._guarded(action, *args)

    def _guarded(self, action: Action, *args: Any) -> None:
        """A failure that concerns one service or client must not end the others' keeper."""
        try:
            action(*args)
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
