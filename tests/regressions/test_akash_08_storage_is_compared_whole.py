"""Defect 8: volumes were compared along the manifest's list: fewer passed, more crashed.

Seen failing when ``crosscheck._check_service`` compares ``zip(leased, given)``: the shorter list
passes.
"""

from __future__ import annotations

import msgspec
import pytest

from leasehold.manifest import crosscheck
from leasehold.manifest.testing import simple
from leasehold.model import sdl
from leasehold.model.resources import Storage, Val


@pytest.mark.parametrize("change", ["shorter", "longer", "swapped"])
def test_another_number_or_order_of_volumes_is_refused(change: str) -> None:
    two = simple().replace(
        "storage: {size: 1Gi}", "storage: [{name: a, size: 1Gi}, {name: b, size: 2Gi}]"
    )
    loaded = sdl.load(two)
    manifest = loaded.manifest()
    specs = loaded.groups()
    assert crosscheck.violations(manifest, specs) == []
    service = manifest[0].all_services[0]
    volumes = service.resources.volumes
    changed = {
        "shorter": volumes[:1],
        "longer": [*volumes, Storage(Val.of(1 << 30), "c")],
        "swapped": volumes[::-1],
    }[change]
    resources = msgspec.structs.replace(service.resources, storage=changed)
    service = msgspec.structs.replace(service, resources=resources)
    manifest = [msgspec.structs.replace(manifest[0], services=[service])]
    assert [v.code for v in crosscheck.violations(manifest, specs)] == ["storage_differs"]
