"""Which nodes have the GPU a service asks for.

The attribute of a GPU names what it may be, one key an alternative:
``vendor/nvidia/model/a100/ram/80Gi/interface/sxm``; ram and interface may be missing, the model may
be ``*``. Nodes carry a label for every combination they have, most general to most exact.
"""

from __future__ import annotations

from typing import Any

import msgspec

from leasehold.core.errors import LeaseholdError
from leasehold.model.resources import GPU

LABEL = "leasehold.dev/gpu"
RESOURCES = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu", "intel": "gpu.intel.com/i915"}


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """One alternative; empty means any."""

    vendor: str
    model: str = ""
    ram: str = ""
    interface: str = ""

    @classmethod
    def parse(cls, key: str) -> Wanted:
        parts = key.split("/")
        pairs = dict(zip(parts[::2], parts[1::2], strict=False))
        unknown = set(pairs) - {"vendor", "model", "ram", "interface"}
        if len(parts) % 2 or unknown or pairs.get("vendor") not in RESOURCES:
            raise LeaseholdError(
                "bad_gpu_attribute",
                f"{key!r} does not name a GPU",
                expected="vendor/<nvidia|amd|intel>[/model/<name>][/ram/<size>][/interface/<kind>]",
                got=key,
            )
        return cls(
            vendor=pairs["vendor"],
            model=_any(pairs.get("model", "")),
            ram=_any(pairs.get("ram", "")),
            interface=_any(pairs.get("interface", "")),
        )

    @property
    def label(self) -> str:
        """The node label that says a node has it: each part by its own value."""
        name = f"{LABEL}.vendor.{self.vendor}"
        for part in ("model", "ram", "interface"):
            value = getattr(self, part)
            if value:
                name += f".{part}.{value}"
        return name


def wanted(gpu: GPU) -> list[Wanted]:
    """The alternatives of a GPU request, in the order given."""
    return [Wanted.parse(a.key) for a in gpu.attributes or () if a.value == "true"]


def resource(gpu: GPU) -> str:
    """The extended resource its units are counted in."""
    found = wanted(gpu)
    return RESOURCES[found[0].vendor if found else "nvidia"]


def affinity(gpu: GPU) -> dict[str, Any] | None:
    """Node affinity: any of the alternatives will do. None when every node will."""
    terms = [
        {"matchExpressions": [{"key": choice.label, "operator": "Exists"}]}
        for choice in wanted(gpu)
    ]
    if not terms:
        return None
    required = {"nodeSelectorTerms": terms}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}


def _any(value: str) -> str:
    return "" if value == "*" else value
