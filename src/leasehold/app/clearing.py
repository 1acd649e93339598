"""Taking a stopped provider off its machine: everything that ``leasehold up`` leaves running.

It goes by the state folder and by names that follow from it, needs neither the market nor the log,
and so works whatever became of the provider. Keepers know what to end; one that died is started
once more, since it finds what its predecessor started.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import msgspec

from leasehold.app import debris
from leasehold.app.folder import StateFolder
from leasehold.app.settings import Settings
from leasehold.core.clock import Clock, SystemClock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.service import running
from leasehold.deploy.ingress.haproxy import PROCESS as INGRESS
from leasehold.deploy.keeper.client import KeeperClient
from leasehold.deploy.net.names import PROCESS as NAMES
from leasehold.deploy.net.netlink import Netlink
from leasehold.deploy.net.nft import Nft
from leasehold.deploy.net.node import device_of, give_back
from leasehold.deploy.oci import cgroups
from leasehold.deploy.settings import DeploySettings
from leasehold.node.supervisor import Supervisor
from leasehold.storage.immutable import set_tree

GONE_WAIT = 5.0
"""Seconds processes that were ended may take before they count as left behind."""

MADE_AGAIN = ("keeper", "ingress", "names", "process", "oci/bundles", "oci/disks", "oci/runtime")
"""Folders of what was ended; what a workload has written to its log stays for its time."""

SAID = {INGRESS: "ingress", NAMES: "name server"}


class Cleared(msgspec.Struct, frozen=True):
    """``removed`` and ``left`` in plain words; ``open_leases`` had a workload until now."""

    removed: list[str]
    left: list[str]
    open_leases: list[str]


async def clear(
    state: Path, settings: Settings, *, purge: bool = False, clock: Clock | None = None
) -> Cleared:
    """End everything that runs from ``state``; with ``purge`` delete the folder, too.

    LeaseholdError ``no_state``, or ``state_in_use`` while the provider runs.
    """
    clock, state = clock or SystemClock(), state.absolute()
    if not (state / "provider.key").exists():
        raise LeaseholdError(
            "no_state", f"there is no provider's state in {state}", kind=Kind.NOT_FOUND, got=state
        )
    folder = StateFolder(state)
    folder.open()
    try:
        removed, leases = await _end_workloads(state / "deploy", settings.deploy, clock)
        removed += await _end_services(state / "node", clock)
        left = await _left(state, clock)
        if purge and not left:
            await asyncio.to_thread(_delete, state)
            removed.append(f"folder {state}")
    finally:
        folder.close()
    return Cleared(removed, left, leases)


async def _end_workloads(
    folder: Path, settings: DeploySettings, clock: Clock
) -> tuple[list[str], list[str]]:
    """Containers, proxy, name server and their keeper, then what the host was given for them.

    What was removed, and the leases that had a workload.
    """
    keeper = KeeperClient(folder / "keeper", clock=clock)
    if not keeper.folder.exists():
        return [], []
    async with running(keeper):
        kept = await keeper.list()
        await keeper.retire(force=True)
    of = {id: item.get("labels", {}).get("lease", "") for id, item in kept.items()}
    removed = [f"a replica of {lease}" if lease else SAID.get(id, id) for id, lease in of.items()]
    if settings.runtime != "process":
        device = device_of(keeper.folder)
        netlink, nft = Netlink(), Nft()
        try:
            give_back(netlink, nft, device, folder)
        finally:
            nft.close()
            netlink.close()
        cgroups.remove(settings.cgroup_parent)
        removed.append(f"network {device}")
    for part in MADE_AGAIN:
        await asyncio.to_thread(shutil.rmtree, folder / part, True)
    return [*removed, "keeper"], sorted(set(of.values()) - {""})


async def _end_services(root: Path, clock: Clock) -> list[str]:
    journal = root / "keeper.journal"
    if not journal.exists():
        return []
    supervisor = Supervisor(root, clock=clock)
    async with running(supervisor):
        services = len(supervisor.states)
        await supervisor.shutdown_keeper()
    journal.unlink()  # A keeper that found it would start them again.
    return [f"{services} services of the node"] if services else []


async def _left(state: Path, clock: Clock) -> list[str]:
    deadline = clock.monotonic() + GONE_WAIT
    while (left := debris.find(state)) and clock.monotonic() < deadline:
        await clock.sleep(0.1)
    return left


def _delete(state: Path) -> None:
    set_tree(state, False)  # Frozen volumes are immutable even for root.
    shutil.rmtree(state)
