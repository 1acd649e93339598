"""The table of ``docs/benchmarks.md``: the newest result of each bench, between two marks."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"
HEAD = "| bench | ours | peer | ratio | aim | measured |\n|---|---|---|---|---|---|\n"


def write(lines: list[dict[str, Any]]) -> None:
    """Replace the rows of the benches in ``lines``; a bench that failed keeps its old row."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    rows = {found[1]: found[0] for found in re.finditer(r"^\| `(\w+)` .*\n", table, re.M)}
    rows |= {line["bench"]: row(line) for line in lines if "error" not in line}
    PAGE.write_text(f"{before}{BEGIN}{HEAD}{''.join(rows[n] for n in sorted(rows))}{END}{after}")


def row(line: dict[str, Any]) -> str:
    unit = line["unit"]
    peer = line.get("peer") or ""
    if line.get("peer_value") is not None:
        peer = f"{peer}: {number(line['peer_value'])} {unit}"
    ratio = "" if line.get("ratio") is None else f"{line['ratio']:.2f}"
    when = f"{datetime.now(UTC):%Y-%m-%d}, load {os.getloadavg()[0]:.0f}"
    cells = [
        f"`{line['bench']}`",
        f"{number(line['value'])} {unit}",
        peer,
        ratio,
        line["aim"],
        when,
    ]
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |\n"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
