"""Snapshots of real trees: taken, compared, and brought back byte for byte."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leasehold.core.errors import LeaseholdError
from leasehold.storage.content import ContentStore
from leasehold.storage.restore import restore
from leasehold.storage.shadow import Author, Shadow
from leasehold.storage.tree import Record, decode, encode

ME = Author("acme", "acme@example.org")


@pytest.fixture
def shadow(tmp_path: Path) -> Shadow:
    shadow = Shadow(tmp_path / "shadow.git", ContentStore(tmp_path / "content"))
    shadow.create()
    shadow.create()
    return shadow


def picture(root: Path) -> dict[str, tuple[object, ...]]:
    out: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        found = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        out[str(path.relative_to(root))] = (found.st_mode, found.st_mtime_ns, content)
    return out


def test_a_snapshot_brings_everything_back(shadow: Shadow, tmp_path: Path) -> None:
    files = tmp_path / "files"
    (files / "deep" / ".git" / "x").mkdir(parents=True)
    (files / "a b\nc\\d\rß").write_bytes(b"odd name")
    os.close(os.open(os.fsencode(files) + b"/\xff\xfe", os.O_CREAT | os.O_WRONLY))
    (files / "deep" / "big").write_bytes(os.urandom(700_000))
    (files / "deep" / ".git" / "x" / "run.sh").write_text("#!/bin/sh\n")
    (files / "deep" / ".git" / "x" / "run.sh").chmod(0o4750)
    (files / "link").symlink_to("../../etc/passwd")
    (files / "empty").mkdir(mode=0o1777)
    os.mkfifo(files / "fifo")
    before = {k: v for k, v in picture(files).items() if k != "fifo"}

    first = shadow.snapshot(files, ME, "one")
    assert (first.files, first.author, first.message) == (4, "acme", "one")
    assert shadow.snapshot(files, ME, "nothing changed").commit == first.commit

    (files / "deep" / "big").write_bytes(b"gone")
    (files / "link").unlink()
    (files / "link").mkdir()
    (files / "empty").rmdir()
    (files / "new").write_text("new")
    second = shadow.snapshot(files, ME, "two")
    changes = {c.path: c.how for c in shadow.diff(first.commit, second.commit)}
    assert changes == {
        "deep/big": "modified",
        "link": "modified",
        "empty": "removed",
        "new": "added",
    }
    assert [s.message for s in shadow.history()] == ["two", "one"]

    done = restore(shadow, first.commit, files)
    assert picture(files) == before
    assert done.written == 1
    restore(shadow, second.commit, tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "new").read_text() == "new"
    assert stat.S_ISDIR((tmp_path / "elsewhere" / "link").lstat().st_mode)


def test_content_is_kept_once(shadow: Shadow, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    data = os.urandom(400_000)
    for name in "abc":
        (files / name).write_bytes(data)
    assert shadow.snapshot(files, ME, "one").stored == 400_000
    assert shadow.content.bytes() == 400_000


def test_a_change_that_stat_hides_is_still_seen(shadow: Shadow, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    target = files / "a"
    for n in range(20):
        target.write_text(f"{n:04}")
        os.utime(target, ns=(0, 0))
        commit = shadow.snapshot(files, ME, str(n)).commit
        (record,) = [r for _, r in shadow.records(commit)]
        out = tmp_path / "out"
        restore(shadow, commit, out)
        assert (out / "a").read_text() == f"{n:04}", record


def test_restoring_never_leaves_the_volume(shadow: Shadow, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    files = tmp_path / "files"
    (files / "d").mkdir(parents=True)
    (files / "d" / "secret").write_text("mine")
    commit = shadow.snapshot(files, ME, "one").commit
    (files / "d" / "secret").unlink()
    (files / "d").rmdir()
    (files / "d").symlink_to(outside)
    restore(shadow, commit, files)
    assert (outside / "secret").read_text() == "secret"
    assert (files / "d" / "secret").read_text() == "mine"


def test_a_damaged_shadow_is_told_apart(tmp_path: Path) -> None:
    shadow = Shadow(tmp_path / "shadow.git", ContentStore(tmp_path / "content"))
    with pytest.raises(LeaseholdError) as refused:
        shadow.history()
    assert refused.value.code == "shadow_unusable"
    shadow.create()
    files = tmp_path / "files"
    files.mkdir()
    (files / "a").write_bytes(b"x")
    commit = shadow.snapshot(files, ME, "one").commit
    for path in list((tmp_path / "content").rglob("*")):
        if path.is_file():
            path.unlink()
    with pytest.raises(LeaseholdError) as refused:
        restore(shadow, commit, tmp_path / "out")
    assert refused.value.code == "content_missing"
    with pytest.raises(LeaseholdError) as refused:
        shadow.resolve("0123abcd")
    assert refused.value.code == "snapshot_not_found"


names = st.binary(min_size=1, max_size=8).filter(
    lambda b: b not in (b".", b"..") and b"/" not in b and b"\0" not in b
)
records = st.builds(
    Record,
    st.sampled_from("fdl"),
    st.integers(0, 0o7777),
    st.integers(0, 1 << 32),
    st.integers(0, 1 << 32),
    st.integers(0, 1 << 62),
    st.integers(-(1 << 62), 1 << 62),
    st.just("") | st.binary(min_size=2, max_size=9).map(os.fsdecode),
    names.map(os.fsdecode),
)


@given(st.lists(records, max_size=5, unique_by=lambda r: r.name))
def test_records_survive_their_text_form(some: list[Record]) -> None:
    assert sorted(decode(encode(some))) == sorted(some)


@settings(max_examples=200)
@given(st.binary(max_size=80))
def test_nonsense_is_refused_as_damage(block: bytes) -> None:
    code = ""
    try:
        list(decode(block))
    except LeaseholdError as error:
        code = error.code
    assert code in ("", "snapshot_damaged")
