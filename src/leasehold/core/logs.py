"""Structured logs on stderr: JSON for machines, short coloured lines on a terminal.

``get_logger(__name__).info("lease.won", lease="acme/1")``: the event is a dotted name, the rest are
fields. Values of fields whose name looks secret are masked before anything is written.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, cast

import structlog

SECRET = re.compile(r"(?i)(password|passwd|secret|token|private|authorization|credential|api_?key)")
"""Field names whose values are never written."""


def mask(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace the value of every field named like a secret."""
    for key in event:
        if key != "event" and SECRET.search(key):
            event[key] = "***"
    return event


def configure(level: str = "info", *, json: bool | None = None) -> None:
    """Set up logging once for the process. ``json=None``: JSON unless stderr is a terminal."""
    as_json = not sys.stderr.isatty() if json is None else json
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
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
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module."""
    return cast(
        "structlog.stdlib.BoundLogger", structlog.get_logger(part=name.removeprefix("leasehold."))
    )
