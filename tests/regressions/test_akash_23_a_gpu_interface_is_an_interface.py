"""The node selector for a GPU's interface was built from its memory size, so a request for
``.../ram/80Gi/interface/sxm`` looked for an interface called ``80Gi`` and matched no node.

Seen failing with ``value = getattr(self, "ram" if part == "interface" else part)`` in
``kubernetes/gpu.py``.
"""

from __future__ import annotations

from leasehold.deploy.kubernetes.gpu import Wanted, affinity
from leasehold.model.resources import GPU, Attribute, Val


def test_each_part_by_its_own_value() -> None:
    found = Wanted.parse("vendor/nvidia/model/a100/ram/80Gi/interface/sxm")
    assert found.label == "leasehold.dev/gpu.vendor.nvidia.model.a100.ram.80Gi.interface.sxm"
    assert Wanted.parse("vendor/nvidia/model/a100/interface/pcie").label.endswith(
        "model.a100.interface.pcie"
    )
    assert Wanted.parse("vendor/nvidia/model/*").label == "leasehold.dev/gpu.vendor.nvidia"


def test_any_of_the_alternatives_will_do() -> None:
    gpu = GPU(
        Val("1"),
        [
            Attribute("vendor/nvidia/model/a100/ram/80Gi/interface/sxm", "true"),
            Attribute("vendor/nvidia/model/h100", "true"),
        ],
    )
    rule = affinity(gpu)
    assert rule is not None
    required = rule["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert [t["matchExpressions"][0]["key"].rpartition("vendor.")[2] for t in
            required["nodeSelectorTerms"]] == [
        "nvidia.model.a100.ram.80Gi.interface.sxm",
        "nvidia.model.h100",
    ]  # fmt: skip
