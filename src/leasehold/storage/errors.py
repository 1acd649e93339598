"""How an error of a repo is to be taken: the class is a wrapper found along the causes.

*stored*: the error is on the repo already, nothing to do. *strong*: store it now, trying again
cannot help. *weak*: try a few times, then store. Anything else is nobody's fault here: the engine
tries again, with growing pauses, for as long as it takes.
"""

from __future__ import annotations

import asyncio
import enum

WEAK_RETRIES = 5
"""Times a weak error is tried again before it is stored (nog's ConfigMaxRetryWeak)."""


class Class(enum.Enum):
    CANCELLED = "cancelled"
    STORED = "stored"
    STRONG = "strong"
    WEAK = "weak"
    PLAIN = "plain"


class Marked(Exception):
    """An error with a class; its text is that of the error inside."""

    mark: Class = Class.PLAIN

    def __init__(self, error: BaseException | str) -> None:
        super().__init__(str(error))
        if isinstance(error, BaseException):
            self.__cause__ = error


class Stored(Marked):
    mark = Class.STORED


class Strong(Marked):
    mark = Class.STRONG


class Weak(Marked):
    mark = Class.WEAK


def classify(error: BaseException) -> Class:
    """The class of ``error``; a cancellation anywhere along its causes is one."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__
    if any(isinstance(e, asyncio.CancelledError) for e in chain):
        return Class.CANCELLED
    for mark in (Class.STORED, Class.STRONG, Class.WEAK):
        if any(isinstance(e, Marked) and e.mark is mark for e in chain):
            return mark
    return Class.PLAIN


def code_of(error: BaseException) -> str:
    """The code of the innermost error that has one."""
    code = type(error).__name__
    current: BaseException | None = error
    while current is not None:
        code = getattr(current, "code", code)
        current = current.__cause__
    return str(code)
