"""How answers look on a terminal: colours, ages, sizes. Nothing of it reaches a pipe.

Colours are used on a terminal only, never with ``NO_COLOR`` set (to anything) or ``TERM=dumb``;
``FORCE_COLOR`` asks for them in a pipe.
"""

from __future__ import annotations

import os
import re
import sys
import time
from typing import TextIO

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}

_STATES = {
    "healthy": "green", "active": "green", "ready": "green", "ok": "green", "valid": "green",
    "running": "cyan", "waiting": "yellow", "warning": "yellow", "unhealthy": "yellow",
    "reclaiming": "yellow", "unknown": "yellow", "failed": "red", "error": "red",
    "overdue": "red", "closed": "dim",
}  # fmt: skip

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def coloured(stream: TextIO | None = None) -> bool:
    """Whether ``stream`` (standard output) gets colours."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return (stream or sys.stdout).isatty() and os.environ.get("TERM") != "dumb"


def paint(text: str, *styles: str, stream: TextIO | None = None) -> str:
    """``text`` in these styles where there are colours."""
    if not styles or not coloured(stream):
        return text
    return f"\x1b[{';'.join(_CODES[style] for style in styles)}m{text}\x1b[0m"


def state(text: str) -> str:
    """A state in its colour."""
    return paint(text, _STATES[text]) if text in _STATES else text


def width(text: str) -> int:
    """Columns ``text`` takes, colours not counted."""
    return len(ESCAPES.sub("", text))


def printable(text: str) -> str:
    """``text`` of strangers without what would move a terminal's cursor or change its title."""
    return "".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in text)


def duration(seconds: float) -> str:
    """``3 d``, ``5 h``, ``12 min`` or ``8 s``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def ago(at: float) -> str:
    """How long ago ``at`` (seconds UTC) is; ``-`` for 0."""
    return duration(time.time() - at) if at else "-"


def size(count: float) -> str:
    """Bytes as ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")
