"""Answers as JSON or as a plain table.

A column whose heading begins with ``+`` is shown with ``-o wide`` only. On a terminal the last
column of a narrow table is cut at its edge; pipes get everything.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from leasehold.cli import screen

wide = False
"""Whether ``-o wide`` was asked for; set by the frame before a command runs."""


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str) -> None:
    """Print rows under their headings, or say that there are none."""
    if not rows:
        print(empty)
        return
    shown = [at for at, column in enumerate(columns) if wide or not column.startswith("+")]
    heads = [columns[at].removeprefix("+") for at in shown]
    cells = [[_text(row[at]) for at in shown] for row in rows]
    widths = [
        max(len(head), *(screen.width(row[at]) for row in cells)) for at, head in enumerate(heads)
    ]
    _line([screen.paint(head, "dim") for head in heads], widths)
    for row in cells:
        _line(row, widths)


def _line(cells: Sequence[str], widths: Sequence[int]) -> None:
    text = "  ".join(
        cell + " " * (room - screen.width(cell)) for cell, room in zip(cells, widths, strict=True)
    ).rstrip()
    edge = shutil.get_terminal_size().columns if sys.stdout.isatty() and not wide else 0
    if edge and screen.width(text) > edge and not screen.ESCAPES.search(cells[-1]):
        text = text[: len(text) - (screen.width(text) - edge) - 1].rstrip() + "…"
    print(text)


def _text(value: Any) -> str:
    """One line of it; of what moves a terminal's cursor only colours pass."""
    if value in (None, "", []):
        return "-"
    parts = re.split(f"({screen.ESCAPES.pattern})", str(value).replace("\n", " "))
    return "".join(p if screen.ESCAPES.fullmatch(p) else screen.printable(p) for p in parts)


def show(value: Any, as_json: bool, *columns: str) -> None:
    """JSON; else a table of ``columns`` for a list, ``key  value`` lines for a mapping."""
    if as_json:
        print(json.dumps(value, indent=2))
    elif isinstance(value, list):
        rows = [[_cell(row.get(column.removeprefix("+"))) for column in columns] for row in value]
        table([column.upper() for column in columns], rows, empty="nothing")
    elif isinstance(value, dict):
        width = max((len(key) for key in value), default=0)
        for key, each in value.items():
            print(f"{key:{width}}  {_cell(each)}")


def _cell(value: Any) -> str:
    if value in (None, "", []):
        return "-"
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
