"""The code of ``docs/how-to/custom-worker.md`` does what is said there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from leasehold.core.service import running
from leasehold.dispatch.manager import Manager
from leasehold.dispatch.settings import DispatchSettings

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "custom-worker.md"


async def test_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    worker, asking, testing = snippets
    settings = DispatchSettings(manager_port=0)
    manager = Manager(settings=settings)
    space: dict[str, Any] = {"__name__": "page"}
    async with running(manager):
        monkeypatch.setattr(sys, "argv", ["worker.py", manager.url])
        exec(compile(worker, "worker.py", "exec"), space)
        async with running(space["worker"]):
            # The page's manager is one of its own; ours knows the worker already.
            known = asking.replace("running(Manager())", "holding()")
            space["holding"] = lambda: _Held(manager)
            exec(compile(known, "ask.py", "exec"), space)
            assert await space["ask"]() == b"42"
    exec(compile(testing, "test.py", "exec"), space)
    await space["test_double"]()


class _Held:
    def __init__(self, manager: Manager) -> None:
        self.manager = manager

    async def __aenter__(self) -> Manager:
        return self.manager

    async def __aexit__(self, *_: object) -> None:
        """It goes on."""
