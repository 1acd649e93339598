"""What is offered, what of it is promised, and whether a group still fits.

A cluster is a list of nodes; on one machine it has one. A reservation is made when a bid is (so
that two bids cannot sell the same room), becomes *allocated* when the lease is won, and is given
back on every way out: bid lost, order closed, lease closed, workload removed. It holds where each
replica was placed. Overcommit enlarges what is offered: 50 per cent more of 4 cores are 6, worked
out exactly, in thousandths and bytes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leasehold.core import metrics
from leasehold.core.errors import Kind, LeaseholdError, Violation
from leasehold.deploy.kubernetes import gpu
from leasehold.deploy.settings import DeploySettings
from leasehold.model.market import OrderId
from leasehold.model.resources import LEASED_IP, GroupSpec, Resources

RESERVED = metrics.gauge(
    "leasehold_inventory_reserved", "promised to orders and leases", ["resource"]
)
OFFERED = metrics.gauge("leasehold_inventory_offered", "offered, overcommit included", ["resource"])

KINDS = ("cpu", "memory", "storage", "gpu")
"""Thousandths of a core, bytes, bytes, units."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """So much of each resource."""

    cpu: int = 0
    memory: int = 0
    storage: int = 0
    gpu: int = 0

    @classmethod
    def of(cls, resources: Resources) -> Amounts:
        """What one replica takes. Volumes of class ``ram`` count as memory."""
        ram = sum(int(v.size) for v in resources.volumes if v.storage_class == "ram")
        return cls(
            resources.cpu_milli,
            resources.memory_bytes + ram,
            resources.storage_bytes - ram,
            resources.gpu_units,
        )

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(*(getattr(self, k) + getattr(other, k) for k in KINDS))

    def __sub__(self, other: Amounts) -> Amounts:
        return Amounts(*(getattr(self, k) - getattr(other, k) for k in KINDS))

    def covers(self, other: Amounts) -> bool:
        return all(getattr(self, k) >= getattr(other, k) for k in KINDS)

    def to_dict(self) -> dict[str, int]:
        return {kind: getattr(self, kind) for kind in KINDS}


@dataclass(frozen=True, slots=True)
class Node:
    """``offered`` includes overcommit. ``gpu_model`` says what all its GPUs are:
    ``vendor.nvidia.model.a100.ram.80Gi``.
    ``classes`` are the storage classes it can make volumes of."""

    name: str
    offered: Amounts
    gpu_model: str = ""
    classes: frozenset[str] = frozenset({"default", "beta1", "beta2", "beta3", "ram"})


@dataclass(slots=True)
class Reservation:
    """``placed`` has one (node, amounts) a replica."""

    order: OrderId
    group: str
    placed: list[tuple[str, Amounts]] = field(default_factory=list)
    allocated: bool = False
    persistent: int = 0
    """Bytes of it that are persistent volumes."""
    ips: int = 0
    """Leased addresses."""

    @property
    def total(self) -> Amounts:
        return sum((amounts for _, amounts in self.placed), Amounts())


class Inventory:
    """``unavailable`` turns bids away for a reason: paused, draining. ``volume_bytes()`` is what
    volumes of this machine take, whoever's they are; those of leases that are over take room too.
    """

    def __init__(self, nodes: Iterable[Node], volume_bytes: Callable[[], int] = lambda: 0) -> None:
        self.volume_bytes = volume_bytes
        self.leased_ips: int | None = None
        """Addresses there are to lease; None: somebody else counts them."""
        self.nodes: dict[str, Node] = {}
        self.reservations: dict[OrderId, Reservation] = {}
        self.unavailable = ""
        self.update(nodes)

    def update(self, nodes: Iterable[Node]) -> None:
        """A new look at the cluster. Reservations stay as they are: sold is sold."""
        self.nodes = {node.name: node for node in nodes}
        self._measure()

    async def reserve(self, order: OrderId, group: GroupSpec) -> None:
        """Keep room for a group; doing it again for the same order changes nothing.

        Kind CONFLICT (``no_capacity``) with every resource that is short, or UNSUPPORTED.
        """
        if order in self.reservations:
            return
        if self.unavailable:
            raise LeaseholdError("not_offering", self.unavailable, kind=Kind.UNAVAILABLE)
        self._check_ips(group)
        placed = self.place(group)
        self.reservations[order] = Reservation(
            order, group.name, placed, persistent=_persistent(group), ips=_ips(group)
        )
        self._measure()

    def _check_ips(self, group: GroupSpec) -> None:
        wanted = _ips(group)
        if not wanted or self.leased_ips is None:
            return
        left = self.leased_ips - sum(r.ips for r in self.reservations.values())
        if wanted > left:
            raise LeaseholdError(
                "no_leased_ip",
                "this provider does not have enough addresses left to lease",
                kind=Kind.CONFLICT if self.leased_ips else Kind.UNSUPPORTED,
                expected=f"up to {max(0, left)}",
                got=wanted,
            )

    async def release(self, order: OrderId) -> None:
        """Give the room back; nothing happens when there is none, or when it is leased."""
        reservation = self.reservations.get(order)
        if reservation is not None and not reservation.allocated:
            del self.reservations[order]
            self._measure()

    def allocate(self, order: OrderId, group: GroupSpec) -> None:
        """The lease is won: its room is its own until :meth:`free`, whatever else happens.

        After a restart there is no reservation to find: it is made again, without asking whether
        it fits, since it was sold.
        """
        reservation = self.reservations.get(order)
        if reservation is None:
            reservation = Reservation(
                order,
                group.name,
                self._place(group, force=True),
                persistent=_persistent(group),
                ips=_ips(group),
            )
            self.reservations[order] = reservation
        reservation.allocated = True
        self._measure()

    def free(self, order: OrderId) -> None:
        """The lease is over and nothing of it runs any more."""
        if self.reservations.pop(order, None) is not None:
            self._measure()

    # -- fitting ----------------------------------------------------------------------------------

    def place(self, group: GroupSpec) -> list[tuple[str, Amounts]]:
        """Where each replica would go; raises when some would not."""
        return self._place(group, force=False)

    def _place(self, group: GroupSpec, *, force: bool) -> list[tuple[str, Amounts]]:
        free = self.available()
        placed: list[tuple[str, Amounts]] = []
        short: list[Violation] = []
        for index, unit in enumerate(group.resources):
            needed = Amounts.of(unit.resource)
            for models in self._gpu_choices(needed):
                trial = dict(free)
                found = []
                for _ in range(unit.count):
                    name = self._fit(trial, unit.resource, needed, models)
                    if name is None:
                        break
                    trial[name] = trial[name] - needed
                    found.append((name, needed))
                if len(found) == unit.count:
                    free, placed = trial, placed + found
                    break
            else:
                short.append(self._shortage(index, unit.count, needed, free))
                if force:
                    name = next(iter(self.nodes), "")
                    placed += [(name, needed)] * unit.count
        if short and not force:
            raise LeaseholdError.of(short, kind=Kind.CONFLICT)
        return placed

    def _gpu_choices(self, needed: Amounts) -> Sequence[str | None]:
        """All replicas of a unit get the same GPU model: each is tried in turn."""
        if not needed.gpu:
            return [None]
        return sorted({node.gpu_model for node in self.nodes.values() if node.offered.gpu})

    def _fit(
        self, free: Mapping[str, Amounts], resources: Resources, needed: Amounts, model: str | None
    ) -> str | None:
        """The first node with room for one replica."""
        for name, node in self.nodes.items():
            if model is not None and (node.gpu_model != model or not suits(model, resources)):
                continue
            if not {v.storage_class for v in resources.volumes} <= node.classes:
                continue
            if free[name].covers(needed):
                return name
        return None

    def _shortage(
        self, index: int, count: int, needed: Amounts, free: Mapping[str, Amounts]
    ) -> Violation:
        best = {
            kind: max((getattr(amounts, kind) for amounts in free.values()), default=0)
            for kind in KINDS
        }
        scarce = [kind for kind in KINDS if getattr(needed, kind) * min(count, 1) > best[kind]]
        what = ", ".join(scarce) if scarce else "room for all replicas together"
        return Violation(
            "no_capacity",
            f"this provider does not have enough left: {what}",
            path=f"resources[{index}]",
            expected=", ".join(f"{k} {getattr(needed, k)}" for k in scarce or KINDS)
            + f" x {count}",
            got=", ".join(f"{k} {best[k]}" for k in scarce or KINDS),
        )

    # -- looking ----------------------------------------------------------------------------------

    def available(self) -> dict[str, Amounts]:
        """What each node has left."""
        free = {name: node.offered for name, node in self.nodes.items()}
        kept = self.kept
        if kept and free:  # volumes are made on the machine itself: there is one node
            name = next(iter(free))
            free[name] = free[name] - Amounts(storage=kept)
        for reservation in self.reservations.values():
            for name, amounts in reservation.placed:
                if name in free:
                    free[name] = free[name] - amounts
        return free

    @property
    def kept(self) -> int:
        """Bytes of volumes that no lease of now has: frozen, kept for their owners."""
        leased = sum(r.persistent for r in self.reservations.values() if r.allocated)
        return max(0, self.volume_bytes() - leased)

    def to_dict(self) -> dict[str, Any]:
        """For operators: nodes, and what is promised to bids apart from what is leased."""
        free = self.available()
        return {
            "nodes": [
                {
                    "name": name,
                    "offered": node.offered.to_dict(),
                    "available": free[name].to_dict(),
                    "gpu_model": node.gpu_model,
                }
                for name, node in self.nodes.items()
            ],
            "pending": [_row(r) for r in self.reservations.values() if not r.allocated],
            "leased": [_row(r) for r in self.reservations.values() if r.allocated],
            "kept_volume_bytes": self.kept,
            "unavailable": self.unavailable,
        }

    def _measure(self) -> None:
        offered = sum((node.offered for node in self.nodes.values()), Amounts())
        reserved = sum((r.total for r in self.reservations.values()), Amounts())
        for kind in KINDS:
            OFFERED.labels(kind).set(getattr(offered, kind))
            RESERVED.labels(kind).set(getattr(reserved, kind))


def _ips(group: GroupSpec) -> int:
    """Addresses it names: endpoints with the same number share one."""
    return len(
        {
            endpoint.sequence_number
            for unit in group.resources
            for endpoint in unit.resource.endpoints or ()
            if endpoint.kind == LEASED_IP
        }
    )


def suits(model: str, resources: Resources) -> bool:
    """Whether GPUs of ``model`` are among what was asked for, where anything was said of them."""
    parts = model.split(".")
    has = set(zip(parts[::2], parts[1::2], strict=False))
    wanted = gpu.wanted(resources.gpu) if resources.gpu is not None else []
    return not wanted or any(
        {(part, value) for part in ("vendor", "model", "ram", "interface")
         if (value := getattr(choice, part))} <= has
        for choice in wanted
    )  # fmt: skip


def _persistent(group: GroupSpec) -> int:
    return sum(
        int(volume.size) * unit.count
        for unit in group.resources
        for volume in unit.resource.volumes
        if volume.persistent
    )


def _row(reservation: Reservation) -> dict[str, Any]:
    return {
        "order": str(reservation.order),
        "group": reservation.group,
        "total": reservation.total.to_dict(),
        "nodes": sorted({name for name, _ in reservation.placed}),
    }


def offered(amount: int, share: float, overcommit_percent: int) -> int:
    """``share`` of ``amount``, and so many per cent more, without losing a unit to rounding early.

    The percentage multiplies before it divides: 50 per cent of 3 is 1 more, not none.
    """
    return int(amount * share) * (100 + overcommit_percent) // 100


def this_machine(folder: Path, settings: DeploySettings) -> Node:
    """What this machine offers: its CPUs, memory and the disk below ``folder``, as settings say."""
    cpu = len(os.sched_getaffinity(0)) * 1000
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disk = shutil.disk_usage(folder).total
    return Node(
        os.uname().nodename,
        Amounts(
            offered(cpu, settings.offer_cpu, settings.overcommit_cpu),
            offered(memory, settings.offer_memory, settings.overcommit_memory),
            offered(disk, settings.offer_storage, settings.overcommit_storage),
            len(settings.gpus),
        ),
        settings.gpu_model.replace("/", "."),
    )
