"""Sessions: the key opens the credential, nothing else does, and what is kept reveals nothing."""

from __future__ import annotations

import stat
from pathlib import Path

from leasehold.dashboard import sessions as module
from leasehold.dashboard.sessions import LIFETIME, Credential, Sessions

NOW = 1_800_000_000.0
TOKEN = Credential("operator", "very secret operator token")


def test_the_key_opens_it_and_only_for_a_while(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path / "sessions")
    key = sessions.open(TOKEN, NOW)
    assert sessions.find(key, NOW + 1) == TOKEN
    assert Sessions(tmp_path / "sessions").find(key, NOW + 1) == TOKEN  # a restart
    assert sessions.find(key, NOW + LIFETIME + 1) is None
    assert sessions.find(key, NOW) is None, "an old session comes back"


def test_what_is_kept_reveals_nothing(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path / "sessions")
    key = sessions.open(TOKEN, NOW)
    (file,) = (tmp_path / "sessions").iterdir()
    assert b"secret" not in file.read_bytes()
    assert key not in file.name
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_other_keys_open_nothing(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path)
    key = sessions.open(TOKEN, NOW)
    for other in ("", "x", key[:-2] + "AA", "../" * 10, "é" * 43, "A" * 43):
        assert sessions.find(other, NOW) is None
        sessions.close(other)
    assert sessions.find(key, NOW) == TOKEN
    sessions.close(key)
    assert sessions.find(key, NOW) is None


def test_there_are_not_too_many(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    sessions = Sessions(tmp_path)
    keys = [sessions.open(TOKEN, NOW + at) for at in range(6)]
    assert sessions.find(keys[0], NOW + 6) is None
    assert sessions.find(keys[-1], NOW + 6) == TOKEN
