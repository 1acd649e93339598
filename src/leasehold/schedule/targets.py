"""Where a task goes: to a fixed address, or to a manager that has a worker online for it.

Managers are asked for their workers now and then; each answer replaces what was known of that
manager, whole. So a target goes away with the last of a manager's workers for it, not with the
first, and one manager's networks do not get in each other's way. A manager that does not answer is
taken out after ``SILENT`` questions: unknown is not gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import httpx
import msgspec
from msgspec import Meta

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.schedule.rpc import RpcClient

ONLINE = 1
"""The state of a worker that can be given tasks, in ``/get_workers``."""

SILENT = 3
"""Unanswered questions until a manager's targets are dropped."""

Key = tuple[str, str, str]
"""Network, chain id, version."""

log = get_logger(__name__)


class Destination(msgspec.Struct, frozen=True, kw_only=True):
    """A place to call. ``type`` ``manager`` is asked for its workers; others are fixed targets.

    ``additional`` may hold ``{runner: {"endpoint": path}}`` for calls over HTTP.
    """

    type: str = "manager"
    network: str = ""
    chain_id: str = ""
    version: str = "0.0.1"
    address: Annotated[str, Meta(min_length=1)]
    conn_type: Annotated[str, Meta(pattern="^(ws|http)$")] = "ws"
    additional: dict[str, dict[str, str]] = {}


def load(text: str) -> list[Destination]:
    """Destinations from JSON text or from the ``*.json`` files of a folder."""
    if not text.strip():
        return []
    sources = (
        [text]
        if text.lstrip().startswith("[")
        else [path.read_text() for path in sorted(Path(text).glob("*.json"))]
    )
    try:
        return [d for s in sources for d in msgspec.json.decode(s, type=list[Destination])]
    except msgspec.MsgspecError as error:
        raise LeaseholdError(
            "bad_destinations", str(error), kind=Kind.INVALID, path="schedule.destinations"
        ) from None


class Targets:
    """Known destinations by (network, chain id, version); the next one in turn."""

    def __init__(
        self,
        destinations: Iterable[Destination],
        *,
        clock: Clock,
        client: httpx.AsyncClient,
        rpc: Callable[[str], RpcClient],
    ) -> None:
        self.clock = clock
        self._client = client
        self._rpc = rpc
        self.managers: list[Destination] = []
        self._fixed: list[Destination] = []
        for destination in destinations:
            (self.managers if destination.type == "manager" else self._fixed).append(destination)
        self._found: dict[str, set[Key]] = {}
        self._silent: dict[str, int] = {}
        self._turn: dict[Key, int] = {}

    async def discover(self) -> None:
        """Ask every manager once."""
        for manager in self.managers:
            try:
                found = online(await self._workers(manager))
            except (LeaseholdError, httpx.HTTPError, msgspec.MsgspecError) as error:
                misses = self._silent[manager.address] = self._silent.get(manager.address, 0) + 1
                log.warning("manager.silent", address=manager.address, error=str(error))
                if misses >= SILENT:
                    self._found.pop(manager.address, None)
                continue
            self._silent[manager.address] = 0
            self._found[manager.address] = found

    async def _workers(self, manager: Destination) -> Any:
        if manager.conn_type == "ws":
            return await self._rpc(manager.address).call("get_workers", timeout=10.0)
        answer = await self._client.get(f"{base_url(manager.address)}/get_workers", timeout=10.0)
        answer.raise_for_status()
        return msgspec.json.decode(answer.content)

    def known(self) -> dict[Key, Sequence[Destination]]:
        """All targets, by what they serve."""
        out: dict[Key, list[Destination]] = {}
        for fixed in self._fixed:
            out.setdefault((fixed.network, fixed.chain_id, fixed.version), []).append(fixed)
        for manager in self.managers:
            for key in sorted(self._found.get(manager.address, ())):
                out.setdefault(key, []).append(manager)
        return {key: list({d.address: d for d in found}.values()) for key, found in out.items()}

    def next(self, key: Key) -> Destination | None:
        """The target whose turn it is."""
        found = self.known().get(key)
        if not found:
            return None
        turn = self._turn[key] = self._turn.get(key, -1) + 1
        return found[turn % len(found)]


def online(workers: Any) -> set[Key]:
    """What the workers of a manager serve that are online, from its ``/get_workers``."""
    found: set[Key] = set()
    for network, group in workers.items():
        for worker in group.get("workers", {}).values():
            if worker.get("state") == ONLINE:
                for connection in worker.get("connection") or [{}]:
                    found.add((network, worker.get("chain_id", ""), connection.get("version", "")))
    return found


def base_url(address: str) -> str:
    return address.rstrip("/") if "://" in address else f"http://{address}"
