"""Decision records: each has a number of its own, and the list has them all."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "decisions"


def test_every_decision_has_its_own_number_and_is_listed() -> None:
    records = sorted(FOLDER.glob("[0-9]*.md"))
    numbers = [int(record.name[:4]) for record in records]
    assert numbers == list(range(1, len(records) + 1))
    for number, record in zip(numbers, records, strict=True):
        assert record.read_text().startswith(f"# {number}. "), record.name
    listed = re.findall(r"^\| \[(\d{4})\]\((\S+)\)", (FOLDER / "README.md").read_text(), re.M)
    assert listed == [(record.name[:4], record.name) for record in records]
