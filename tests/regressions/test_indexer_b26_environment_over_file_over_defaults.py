"""B26: defaults of unset variables overwrote the file, or the file hid the environment.

Seen failing: with ``if environ.get(name)`` in ``translate`` replaced by ``if True`` (an unset
variable counts as empty), values of the file are lost.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.dispatch.originals import MANAGER, WORKER, translate


def test_order(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(
        '{"address": "0.0.0.0:9000", "database_url": "postgres://u:p@db/x?sslmode=disable"}'
    )
    values, hints = translate(MANAGER, {}, file)
    assert values == {
        "dispatch": {"manager_host": "0.0.0.0", "manager_port": 9000},
        "index": {"store": "postgresql+asyncpg://u:p@db/x?ssl=disable"},
    }
    assert hints[0].endswith("is called dispatch.manager_host, dispatch.manager_port here")
    values, _ = translate(MANAGER, {"ADDRESS": "127.0.0.1:8085", "DATABASE_URL": ""}, file)
    assert values["dispatch"] == {"manager_host": "127.0.0.1", "manager_port": 8085}
    assert "store" in values["index"]
    assert translate(MANAGER, {"PATH": "/bin"}) == ({}, [])


def test_worker_and_mistakes(tmp_path: Path) -> None:
    values, _ = translate(
        WORKER, {"MANAGERS": "a:1, b:2", "MANAGER_INTERVAL": "10s", "PORT": "3000"}
    )
    assert values["dispatch"] == {
        "managers": ["a:1", "b:2"], "ping_interval": 10.0, "worker_port": 3000,
    }  # fmt: skip
    with pytest.raises(LeaseholdError) as wrong:
        translate(WORKER, {"MANAGER_INTERVAL": "soon"})
    assert wrong.value.path == "MANAGER_INTERVAL"
    with pytest.raises(LeaseholdError):
        translate(MANAGER, {}, tmp_path / "absent.json")
