"""The last lines of a log are found from its end, and are what reading all of it would give."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leasehold.deploy import logs

HEAD = "2026-01-01T00:00:00.{:06d}Z stdout F "


def write(folder: Path, sizes: list[int]) -> list[str]:
    """Rotated files, oldest first, with as many lines each; returns all texts in order."""
    service = folder / "web"
    service.mkdir(exist_ok=True)
    for old in service.iterdir():
        old.unlink()
    texts, at = [], 0
    for back, size in enumerate(reversed(sizes)):
        lines = []
        for _ in range(size):
            lines.append(f"{HEAD.format(at)}line {at} {'x' * (at % 7)}\n")
            at += 1
        name = "0.log" if back == len(sizes) - 1 else f"0.log.{len(sizes) - 1 - back}"
        (service / name).write_text("".join(lines))
        texts += [line.split(" ", 3)[3].rstrip("\n") for line in lines]
    return texts


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=3), tail=st.integers(0, 80))
async def test_the_tail_is_the_end_of_everything(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], tail: int
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    texts = write(folder, sizes)
    logs_chunk, logs.CHUNK = logs.CHUNK, 64
    try:
        found = [line.text async for line in logs.read(folder, None, tail=tail)]
        whole = [line.text async for line in logs.read(folder, None, tail=None)]
    finally:
        logs.CHUNK = logs_chunk
    assert whole == texts
    assert found == texts[max(0, len(texts) - tail) :]


def test_a_search_finds_the_newest_in_all_files(tmp_path: Path) -> None:
    texts = write(tmp_path, [30, 30, 30])
    wanted = [text for text in texts if "LINE 1" in text.upper()]
    found = [line.text for line in logs.search(tmp_path, None, "Line 1", 1000)]
    assert found == wanted
    assert [line.text for line in logs.search(tmp_path, "web", "line 1", 3)] == wanted[-3:]
    assert logs.search(tmp_path, "none", "line", 3) == []
