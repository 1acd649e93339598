"""What a demo may call its own: an empty folder, and what belongs to exactly that folder."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from leasehold.app import debris
from leasehold.app.demo.example import example
from leasehold.app.demo.flow import Demo
from leasehold.core.errors import LeaseholdError


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path):
    """The demo deletes its folder at the end: `--folder .` would have deleted a home."""
    (tmp_path / "precious").touch()
    with pytest.raises(LeaseholdError) as refused:
        Demo(example(), folder=tmp_path)
    assert refused.value.code == "folder_not_empty"


@pytest.fixture
def sleeping(tmp_path: Path) -> Iterator[Path]:
    """``rent``, with one process at home there, beside ``rent2``, with another."""
    processes = []
    for name in ("rent", "rent2"):
        (tmp_path / name / "deploy").mkdir(parents=True)
        processes.append(subprocess.Popen(["sleep", "60"], cwd=tmp_path / name / "deploy"))
    yield tmp_path / "rent"
    for process in processes:
        process.kill()
        process.wait()


def test_a_folder_of_a_similar_name_is_somebody_elses(sleeping: Path):
    (found,) = debris.find(sleeping)
    assert found.endswith("sleep 60")
