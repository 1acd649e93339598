"""Small mistakes and bad moments, and what is said to them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from leasehold.app.accounts import Accounts
from leasehold.app.running import Running, write_running
from leasehold.cli import frame
from leasehold.cli.state import running
from leasehold.core.errors import LeaseholdError, Violation


def test_a_provider_that_was_just_killed_is_not_up(tmp_path: Path):
    """Its process is there until its parent hears of the end; `status` went on to ask it."""
    process = subprocess.Popen(["sleep", "60"])
    url = "http://127.0.0.1:1"
    write_running(
        tmp_path,
        Running(
            pid=process.pid, gateway=url, ledger=url, ingress=url, ops=url, provider="", state=""
        ),
    )
    assert running(tmp_path).pid == process.pid
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(LeaseholdError) as refused:
        running(tmp_path)
    process.wait()
    assert refused.value.code == "not_up"


def test_an_account_nearly_named_right_is_met_with_the_right_one(tmp_path: Path):
    accounts = Accounts(tmp_path)
    accounts.new("acme")
    for ask in (accounts.key, accounts.address):
        with pytest.raises(LeaseholdError, match="did you mean acme") as refused:
            ask("acm")
        assert refused.value.code == "unknown_account"


def test_the_first_of_several_violations_says_where_it_is(capsys: pytest.CaptureFixture[str]):
    several = [Violation("type", f"{n} is wrong", path=f"services.{n}") for n in ("web", "db")]
    frame.show(LeaseholdError.of(several), as_json=False)
    first, second = capsys.readouterr().err.splitlines()
    assert "services.web: web is wrong" in first
    assert "services.db: db is wrong" in second
