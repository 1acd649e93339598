"""Everything here is done as a newcomer would: by commands, against what really runs.

One ``leasehold demo`` runs for all tests of the session that only need a provider to talk to; tests
that hurt a provider start their own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

READY_WAIT = 60.0


@dataclass
class Said:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Live:
    """A running demo."""

    folder: Path
    process: subprocess.Popen[str]
    url: str
    said: list[str]

    @property
    def state(self) -> Path:
        return self.folder / "provider"

    def running(self) -> dict[str, Any]:
        return json.loads((self.state / "run.json").read_text())

    def leasehold(self, *words: str, timeout: float = 60.0, **environment: str) -> Said:
        """Run a command as the demo's tenant and operator."""
        return leasehold(
            *words,
            timeout=timeout,
            LEASEHOLD_STATE=str(self.state),
            LEASEHOLD_HOME=str(self.folder / "home"),
            **environment,
        )


def leasehold(*words: str, timeout: float = 60.0, **environment: str) -> Said:
    done = subprocess.run(
        [sys.executable, "-m", "leasehold", *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | environment,
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def run_leasehold() -> Callable[..., Said]:
    return leasehold


@pytest.fixture
def roomy() -> Iterator[Path]:
    """A folder whose every parent lets a workload's user through, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="leasehold-test-", dir="/var/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    """``leasehold demo``, started in a terminal and ended with Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "-m", "leasehold", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said: list[str] = []
    for line in process.stdout:
        said.append(line.rstrip())
        if "Ctrl-C ends the demo" in line:
            break
    text = "\n".join(said)
    state = re.search(r"--state (\S+)/provider", text)
    url = re.search(r"curl -H 'Host: hello.localhost' (\S+)", text)
    assert state and url, text
    found = Live(Path(state.group(1)), process, url.group(1), said)
    yield found
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=90)
    assert process.returncode == 0, rest
    assert "left behind" not in rest, rest
    assert not found.folder.exists(), rest
