"""Structured logs on stderr: JSON for machines, short coloured lines on a terminal.

``get_logger(__name__).info("lease.won", lease="acme/1")``: the event is a dotted name, the rest are
fields. Values of fields whose name looks secret are masked before anything is written.

The library behind is imported with the first line that is written, and without the pretty printer
it looks for unless lines are for people: together a tenth of a second, which every short command
and every process that is being started would pay.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from functools import cache
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import structlog

SECRET = re.compile(r"(?i)(password|passwd|secret|token|private|authorization|credential|api_?key)")
"""Field names whose values are never written."""


def mask(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace the value of every field named like a secret."""
    for key in event:
        if key != "event" and SECRET.search(key):
            event[key] = "***"
    return event


class _Wanted:
    """What :func:`configure` was told. Unconfigured, everything is written, for people."""

    level = logging.NOTSET
    json = False


def configure(level: str = "info", *, json: bool | None = None) -> None:
    """Set up logging for the process. ``json=None``: JSON unless stderr is a terminal."""
    _Wanted.level = logging.getLevelNamesMapping()[level.upper()]
    _Wanted.json = not sys.stderr.isatty() if json is None else json
    _library.cache_clear()


@cache
def _library() -> Any:
    """structlog, set up as wanted."""
    hide = _Wanted.json and "structlog" not in sys.modules and "rich" not in sys.modules
    if hide:
        sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog
    finally:
        if hide:
            del sys.modules["rich"]
    if _Wanted.level == logging.NOTSET:
        return structlog
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if _Wanted.json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            mask,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_Wanted.level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    return structlog


class _Logger:
    """The logger of a module, which is made when it has something to write."""

    def __init__(self, part: str) -> None:
        self._part = part

    def __getattr__(self, name: str) -> Any:
        if _LEVELS.get(name, logging.CRITICAL) < _Wanted.level:
            return _nothing
        return getattr(_library().get_logger(part=self._part), name)


_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def _nothing(_event: str, **_fields: Any) -> None:
    """Writes no line: its level is not wanted."""


def set_level(level: str) -> None:
    """Change the level of a running process; ValueError for an unknown one."""
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"{level!r} is no log level")
    _Wanted.level = number
    _library.cache_clear()


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module."""
    return cast("structlog.stdlib.BoundLogger", _Logger(name.removeprefix("leasehold.")))
