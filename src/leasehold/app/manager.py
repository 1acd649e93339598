"""The manager role: workers announce themselves here, and the index is asked and filled here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leasehold.app.settings import Settings
from leasehold.core.clock import Clock
from leasehold.core.ops import Ops
from leasehold.core.service import Service, running
from leasehold.dispatch.manager import Manager
from leasehold.dispatch.originals import MANAGER, translate
from leasehold.index.api import application
from leasehold.index.operations import Operations
from leasehold.index.store import Store


class ManagerRole(Service):
    """A manager with an index in ``folder`` (or where ``index.store`` says)."""

    def __init__(self, folder: Path, settings: Settings, *, clock: Clock | None = None) -> None:
        super().__init__("manager role", clock=clock)
        self.folder = folder
        self.settings = settings

    async def start(self) -> None:
        settings = self.settings
        ops = Ops(settings.ops, clock=self.clock)
        url = settings.index.store
        store = (
            Store(url, self.clock) if url else Store.at(self.folder / "index.sqlite3", self.clock)
        )
        self.manager = Manager(self.clock, settings.dispatch)
        operations = Operations(self.manager, store, settings.index, self.clock)
        operations.register()
        self.manager.mount(application(operations, self.clock))
        ops.add_check("workers", self._no_worker)
        ops.add_check("index store", lambda: store.problem)
        for service in (ops, store, self.manager):
            await self.resources.enter_async_context(running(service))

    def _no_worker(self) -> str | None:
        if not hasattr(self.manager, "registry"):
            return "starting"
        unserved = self.manager.unserved()
        return f"no worker is online for {', '.join(unserved)}" if unserved else None


def original_flags(
    environ: Mapping[str, str], file: Path | None
) -> tuple[dict[str, Any], list[str]]:
    """Flags for :func:`leasehold.app.settings.read` out of the original manager's settings."""
    values, hints = translate(MANAGER, environ, file)
    flags = {f"{section}.{key}": v for section, found in values.items() for key, v in found.items()}
    return flags, hints
