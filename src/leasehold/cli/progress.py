"""A line that shows how far something is, on a terminal's standard error and nowhere else.

What is shown is asked for again and again from a thread, while the command waits for its answer.
A look that fails shows nothing: progress is never a reason for a command to fail.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

EVERY = 0.25
"""Seconds between looks."""

CELLS = 24

ERASE = "\r\x1b[K"


@dataclass(frozen=True)
class Far:
    """``done`` of ``total`` (0: not known) and what to say of it."""

    done: float
    total: float
    text: str


def line(far: Far) -> str:
    """``[██████░░░░]  60 %  text``; without a total only the text."""
    if not far.total:
        return far.text
    share = min(1.0, max(0.0, far.done / far.total))
    full = int(share * CELLS)
    return f"[{'█' * full}{'░' * (CELLS - full)}] {share:4.0%}  {far.text}"


@contextlib.contextmanager
def showing(look: Callable[[], Far | None]) -> Iterator[None]:
    """While the block runs, show what ``look`` says; the line is gone afterwards."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    over = threading.Event()

    def show() -> None:
        while not over.wait(EVERY):
            try:
                far = look()
            except Exception:
                far = None
            if far is not None:
                sys.stderr.write(ERASE + line(far))
                sys.stderr.flush()

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(1.0)
        sys.stderr.write(ERASE)
        sys.stderr.flush()
