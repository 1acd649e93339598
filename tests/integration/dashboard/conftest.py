"""One live system for every browser test: a registry, ``leasehold up`` and a workload that answers.

It is the demo, as a process; the pages are seen with the system's Chromium.
"""

from __future__ import annotations

import contextlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright
from tests.integration.dashboard.live import DOWN_WAIT, UP_WAIT, Live, Tab

from leasehold.storage import immutable


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    """A provider with one healthy lease of the account ``demo``."""
    folder = Path(tempfile.mkdtemp(prefix="leasehold-pages-", dir="/var/tmp"))
    process = subprocess.Popen(
        [sys.executable, "-m", "leasehold", "demo", "--folder", str(folder)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        said = _until(process, "first answer")
        assert said.endswith("\n"), said
        yield Live(folder)
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(DOWN_WAIT)
        process.kill()
        if folder.exists():
            immutable.set_tree(folder, False)  # volumes of closed leases are frozen
            shutil.rmtree(folder, ignore_errors=True)


def _until(process: subprocess.Popen[str], mark: str) -> str:
    """What the demo says until a line has ``mark``; fails when it ends or takes too long."""
    assert process.stdout is not None
    said, deadline = "", time.monotonic() + UP_WAIT
    while mark not in said:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        line = process.stdout.readline() if ready else ""
        assert line, f"the demo did not come up: {said}"
        said += line
    return said


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; for one module, because Playwright's loop occupies the thread meanwhile."""
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-dev-shm-usage"],
        )
        yield found
        found.close()


@pytest.fixture
def tab(browser: Browser, live: Live) -> Iterator[Tab]:
    opened = Tab(browser, live, viewport={"width": 1280, "height": 900})
    yield opened
    opened.context.close()


@pytest.fixture
def phone(browser: Browser, live: Live) -> Iterator[Tab]:
    opened = Tab(browser, live, viewport={"width": 360, "height": 740}, color_scheme="dark")
    yield opened
    opened.context.close()
