"""The ``process`` runtime: workloads as plain processes. **No isolation of any kind.**

For development on machines without containers or root. A replica is a process of the provider's
own user with the image's files copied beside it; a command that the image has is run from that
copy, anything else from the host. It sees the whole host, its ports are the host's ports, and of
its limits none is enforced. It is never chosen by itself and says so at every start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from leasehold.core.clock import Clock
from leasehold.core.errors import LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.service import Service
from leasehold.deploy.keeper.client import KeeperClient
from leasehold.deploy.oci import image
from leasehold.deploy.oci.cgroups import Usage
from leasehold.deploy.replica import Ended, Order, Replica, State
from leasehold.deploy.settings import DeploySettings
from leasehold.deploy.workload import lease_name
from leasehold.model.market import LeaseId

WARNING = (
    "runtime is 'process': workloads run as plain processes with NO isolation and NO limits; "
    "for development only"
)
LOOPBACK = "127.0.0.1"

log = get_logger(__name__)


class ProcessRuntime(Service):
    """See the module; the same interface as the container runtime."""

    def __init__(
        self,
        keeper: KeeperClient,
        folder: Path,
        settings: DeploySettings,
        *,
        clock: Clock | None = None,
    ) -> None:
        super().__init__("process-runtime", clock=clock)
        self.keeper = keeper
        self.folder = folder
        self.settings = settings
        self._exit_listeners: list[Callable[[Replica], None]] = []
        self._lost_listeners: list[Callable[[], None]] = []

    async def start(self) -> None:
        log.warning("runtime.no_isolation", message=WARNING)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.keeper.on_event.append(self._on_event)
        self.resources.callback(self.keeper.on_event.remove, self._on_event)
        self.keeper.on_reconnect.append(self._on_reconnect)
        self.resources.callback(self.keeper.on_reconnect.remove, self._on_reconnect)

    def on_exit(self, listener: Callable[[Replica], None]) -> None:
        self._exit_listeners.append(listener)

    def on_lost(self, listener: Callable[[], None]) -> None:
        self._lost_listeners.append(listener)

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "exited" and "lease" in (event.get("labels") or {}):
            for listener in self._exit_listeners:
                listener(_replica(event))

    def _on_reconnect(self) -> None:
        for listener in self._lost_listeners:
            listener()

    async def start_replica(self, order: Order) -> Replica:
        log.warning("runtime.no_isolation", replica=order.key, message=WARNING)
        known = (await self.keeper.list()).get(order.key)
        if known is not None:
            if known["state"] == "running":
                return _replica(known)
            await self.remove_replica(order.key)
        tree = self.folder / order.key
        await asyncio.to_thread(_copy, [Path(layer) for layer in order.image.layers], tree)
        config = order.image.config
        words = image.command(config, entrypoint=order.service.command, args=order.service.args)
        inside = tree / words[0].lstrip("/")
        program = str(inside) if inside.exists() else words[0]
        given = {**order.environment, "HOME": str(tree), "LEASEHOLD_ROOT": str(tree)}
        environment = image.environment(config, order.service.env or (), given)
        pairs = dict(entry.split("=", 1) for entry in environment)
        pairs["PATH"] = f"{tree}/usr/bin:{tree}/bin:{os.environ.get('PATH', os.defpath)}"
        labels = {
            "lease": str(order.lease),
            "service": order.service.name,
            "revision": order.revision,
            "number": order.number,
            "mark": order.mark,
        }
        check = image.health_check(config)
        if check is not None:
            labels["health"] = asdict(check)
        path = self.log_folder(order.lease) / order.service.name / f"{order.number}.log"
        try:
            found = await self.keeper.ask(
                "spawn",
                id=order.key,
                argv=[program, *words[1:]],
                env=pairs,
                cwd=str(tree),
                output={
                    "path": str(path),
                    "bytes": self.settings.log_bytes,
                    "files": self.settings.log_files,
                    "rate": self.settings.log_rate,
                },
                labels=labels,
            )
        except LeaseholdError as error:
            await self.remove_replica(order.key)
            raise LeaseholdError("runtime_failed", error.message) from None
        return _replica(found)

    async def remove_replica(
        self, key: str, *, grace: float = 0.0, keep_network: bool = False
    ) -> None:
        await self.keeper.ask("delete", id=key, grace=grace)
        await asyncio.to_thread(shutil.rmtree, self.folder / key, True)

    async def replicas(self, lease: LeaseId | None = None) -> list[Replica]:
        items = [i for i in (await self.keeper.list()).values() if "lease" in i.get("labels", {})]
        found = [_replica(item) for item in items]
        return [replace(r) for r in found if lease in (None, r.lease)]

    async def answers(self, replica: Replica, ports: Sequence[int]) -> bool:
        if replica.state is not State.RUNNING:
            return False
        for port in ports:
            try:
                async with self.clock.timeout(self.settings.check_timeout):
                    _, writer = await asyncio.open_connection(LOOPBACK, port)
            except (OSError, TimeoutError):
                return False
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        return True

    def usage(self, replica: Replica) -> Usage | None:
        try:
            with open(f"/proc/{replica.pid}/statm", encoding="ascii") as file:
                resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            with open(f"/proc/{replica.pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            return None
        ticks = int(fields[11]) + int(fields[12])
        return Usage(ticks / os.sysconf("SC_CLK_TCK"), resident, 1)

    def log_folder(self, lease: LeaseId) -> Path:
        return self.folder / "logs" / lease_name(lease)

    def forget_lease(self, lease: LeaseId) -> None:
        """Processes have no group of their own."""


def _copy(layers: Sequence[Path], tree: Path) -> None:
    """The image's files, upper layers over lower ones; whiteouts are left out, ids not kept."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for layer in layers:
        for folder, folders, files in os.walk(layer):
            here = tree / Path(folder).relative_to(layer)
            here.mkdir(exist_ok=True)
            for name in [*files, *(d for d in folders if (Path(folder) / d).is_symlink())]:
                source, target = Path(folder) / name, here / name
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    target.unlink()
                if source.is_symlink():
                    # A link to an absolute path would lead to the host's file.
                    link = os.readlink(source)
                    target.symlink_to(str(tree) + link if link.startswith("/") else link)
                elif source.is_file():
                    shutil.copy2(source, target)


def _replica(item: dict[str, Any]) -> Replica:
    labels, ended = item["labels"], item.get("exit")
    return Replica(
        key=item["id"],
        lease=LeaseId.parse(labels["lease"]),
        service=labels["service"],
        revision=labels["revision"],
        number=labels["number"],
        state=State.EXITED if item["state"] == "exited" else State.RUNNING,
        address=LOOPBACK,
        mark=labels["mark"],
        pid=item.get("pid", 0),
        started_at=item.get("started_at", 0.0),
        ended=Ended(ended["code"], ended["signal"], ended["at"]) if ended else None,
    )
