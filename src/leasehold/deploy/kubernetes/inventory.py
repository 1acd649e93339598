"""What the nodes of a cluster offer: what they can give, less what others were promised on them.

A node that is not ready, is cordoned or keeps ordinary pods off (a taint) offers nothing. Requests
of pods that are not ours are taken off; ours are what the inventory's reservations are for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

from leasehold.core.logs import get_logger
from leasehold.deploy.inventory import Amounts, Node, offered
from leasehold.deploy.kubernetes import gpu
from leasehold.deploy.kubernetes.api import Object
from leasehold.deploy.kubernetes.cache import labels
from leasehold.deploy.settings import DeploySettings

log = get_logger(__name__)

SUFFIXES: dict[str, int | Decimal] = {
    "": 1, "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"),
    "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60,
}  # fmt: skip


QUANTITY = re.compile(r"([+-]?[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]*)")


def quantity(text: str | float) -> Decimal:
    """A Kubernetes quantity, like ``500m``, ``1Gi``, ``1e3`` or ``2``; nothing when it is none."""
    found = QUANTITY.fullmatch(str(text).strip())
    if found is None or found[2] not in SUFFIXES:
        log.warning("quantity.unreadable", text=str(text))
        return Decimal(0)
    return Decimal(found[1]) * SUFFIXES[found[2]]


def usable(node: Object) -> bool:
    """Whether the scheduler would put an ordinary pod on it."""
    spec = node.get("spec", {})
    if spec.get("unschedulable"):
        return False
    if any(taint["effect"] in ("NoSchedule", "NoExecute") for taint in spec.get("taints") or ()):
        return False
    return any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in node.get("status", {}).get("conditions") or ()
    )


def requests(pods: Iterable[Object]) -> dict[str, Amounts]:
    """By node: what running pods were promised."""
    found: dict[str, Amounts] = {}
    for pod in pods:
        spec, node = pod["spec"], pod["spec"].get("nodeName")
        if not node or pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            continue
        steady = [_asked(c) for c in spec.get("containers") or ()]
        first = [_asked(c) for c in spec.get("initContainers") or ()]
        total = sum(steady, Amounts())
        for one in first:  # They run one by one, before the others.
            total = Amounts(*(max(getattr(total, k), getattr(one, k)) for k in _KINDS))
        found[node] = found.get(node, Amounts()) + total
    return found


_KINDS = ("cpu", "memory", "storage", "gpu")


def _asked(container: Object) -> Amounts:
    return _amounts((container.get("resources") or {}).get("requests") or {})


def _amounts(given: Object) -> Amounts:
    return Amounts(
        cpu=int(quantity(given.get("cpu", 0)) * 1000),
        memory=int(quantity(given.get("memory", 0))),
        storage=int(quantity(given.get("ephemeral-storage", 0))),
        gpu=sum(int(quantity(given.get(name, 0))) for name in gpu.RESOURCES.values()),
    )


def nodes(
    found: Iterable[Object],
    others: Iterable[Object],
    classes: Iterable[str],
    settings: DeploySettings,
) -> list[Node]:
    """``others`` are pods that are not ours; ``classes`` the cluster's storage classes."""
    taken = requests(others)
    kinds = {"default", "ram"} | set(classes)
    kinds |= {
        ours for ours, theirs in settings.kubernetes.storage_classes.items() if theirs in kinds
    }
    made = []
    for node in found:
        if not usable(node):
            continue
        name = node["metadata"]["name"]
        free = _amounts(node["status"].get("allocatable") or {}) - taken.get(name, Amounts())
        made.append(
            Node(
                name,
                Amounts(
                    offered(max(0, free.cpu), settings.offer_cpu, settings.overcommit_cpu),
                    offered(max(0, free.memory), settings.offer_memory, settings.overcommit_memory),
                    offered(
                        max(0, free.storage), settings.offer_storage, settings.overcommit_storage
                    ),
                    max(0, free.gpu),
                ),
                gpu_model=_model(node),
                classes=frozenset(kinds),
            )
        )
    return made


def _model(node: Object) -> str:
    """The most exact label that says which GPUs it has."""
    found = [key for key in labels(node) if key.startswith(f"{gpu.LABEL}.")]
    return max(found, key=len, default="").removeprefix(f"{gpu.LABEL}.")
