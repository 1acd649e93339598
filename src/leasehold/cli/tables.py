"""Answers as JSON or as a plain table."""

from __future__ import annotations

import json
from typing import Any


def show(value: Any, as_json: bool, *columns: str) -> None:
    """JSON; else a table of ``columns`` for a list, ``key  value`` lines for a mapping."""
    if as_json:
        print(json.dumps(value, indent=2))
    elif isinstance(value, list):
        rows = [[_cell(row.get(column)) for column in columns] for row in value]
        lines = [[column.upper() for column in columns], *rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
        for line in lines:
            print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
    elif isinstance(value, dict):
        width = max((len(key) for key in value), default=0)
        for key, each in value.items():
            print(f"{key:{width}}  {_cell(each)}")


def _cell(value: Any) -> str:
    if value in (None, "", []):
        return "-"
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
