"""Defect 10: the configuration was logged with the wallet key in it, and a key was built in.

Seen failing without ``extra={"secret": True}`` on ``wallet_key`` in ``node/settings.py``; with the
key among the ``config`` of the decider package, it is found in the node's files.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from leasehold.core.settings import load
from leasehold.node import legacy
from leasehold.node.settings import Decider, SystemServices
from leasehold.node.testing import node_in

KEY = "0x5eC2e7a11c0ffee"


async def test_the_key_is_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert Decider().wallet_key == ""
    services, warnings = legacy.apply(
        SystemServices(enable=("decider",)), {"FLUENCE_ENV_CONNECTOR_WALLET_KEY": KEY}
    )
    assert services.decider.wallet_key == KEY
    assert KEY not in "".join(warnings)
    loaded = load(SystemServices, environ={"LEASEHOLD_DECIDER__WALLET_KEY": KEY})
    assert {p: v for p, v, _ in loaded.rows()}["decider.wallet_key"] == "***"
    async with node_in(tmp_path, system_services=services):
        pass
    assert KEY not in "".join(capfd.readouterr())
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
