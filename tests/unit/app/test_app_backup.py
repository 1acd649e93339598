"""A provider's state in one file and back."""

from __future__ import annotations

import io
import sqlite3
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from leasehold.app.backup import create, restore
from leasehold.app.folder import StateFolder
from leasehold.core.errors import LeaseholdError


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    state = tmp_path / "state"
    (state / "deploy/oci/bundles").mkdir(parents=True)
    (state / "deploy/oci/bundles/secret").write_text("not in it")
    (state / "deploy/ports.json").write_text("[]")
    (state / "images").mkdir()
    (state / "images/big").write_text("not in it")
    (state / "provider.key").write_text("key")
    (state / "run.json").write_text("{}")
    log = sqlite3.connect(state / "events.sqlite3")
    log.execute("PRAGMA journal_mode=WAL")
    log.execute("CREATE TABLE t (n INTEGER)")
    log.execute("INSERT INTO t VALUES (42)")
    log.commit()
    (state / "keep").write_text("x")
    yield state
    # Open until here: what it holds was still in the write-ahead log.
    log.close()


def test_there_and_back(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "backup.tgz"
    assert create(folder, file) == ["deploy/ports.json", "events.sqlite3", "keep", "provider.key"]
    assert file.stat().st_mode & 0o777 == 0o600
    other = tmp_path / "elsewhere/state"
    restore(file, other)
    assert (other / "provider.key").read_text() == "key"
    found = sqlite3.connect(other / "events.sqlite3")
    assert found.execute("SELECT n FROM t").fetchall() == [(42,)]
    found.close()
    assert (other / "provider.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(LeaseholdError) as refused:
        restore(file, other)
    assert refused.value.code == "state_exists"


def test_a_running_provider_is_not_backed_up(folder: Path, tmp_path: Path) -> None:
    running = StateFolder(folder)
    running.open()
    try:
        with pytest.raises(LeaseholdError) as refused:
            create(folder, tmp_path / "backup.tgz")
        assert refused.value.code == "state_in_use"
    finally:
        running.close()


def test_a_damaged_or_hostile_file_restores_nothing(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "backup.tgz"
    create(folder, file)
    short = tmp_path / "short.tgz"
    short.write_bytes(file.read_bytes()[:-60])
    hostile = tmp_path / "hostile.tgz"
    with tarfile.open(file) as source, tarfile.open(hostile, "w:gz") as target:
        first = source.next()
        assert first is not None
        target.addfile(first, source.extractfile(first))
        member = tarfile.TarInfo("../../evil")
        member.size = 1
        target.addfile(member, io.BytesIO(b"x"))
    for bad in (short, hostile, folder / "keep"):
        with pytest.raises(LeaseholdError) as refused:
            restore(bad, tmp_path / "new")
        assert refused.value.code == "bad_backup"
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "evil").exists()
