"""GPUs by the Container Device Interface, with devices every machine has in their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest_deploy import LEASE, Machine, eventually, group, service

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.deploy.inventory import suits
from leasehold.deploy.oci import cdi
from leasehold.model.market import LeaseId
from leasehold.model.resources import GPU, Attribute, Resources, Val

OTHER = LeaseId("akash1other", 200, 1, 1, "akash1provider")


def _describe(folder: Path) -> None:
    """Two "GPUs": the zero device and the null device, and a library of their driver."""
    folder.mkdir()
    library = folder / "libdriver.so.1"
    library.write_text("a driver")
    spec = {
        "cdiVersion": "0.5.0",
        "kind": "vendor.example/gpu",
        "containerEdits": {
            "env": ["DRIVER=yes"],
            "mounts": [{"hostPath": str(library), "containerPath": "/usr/lib/libdriver.so.1"}],
        },
        "devices": [
            {
                "name": str(number),
                "containerEdits": {
                    "env": [f"GPU={number}"],
                    "deviceNodes": [{"path": f"/dev/gpu{number}", "hostPath": host}],
                },
            }
            for number, host in enumerate(("/dev/zero", "/dev/null"))
        ],
    }
    (folder / "vendor.json").write_text(json.dumps(spec))


def _with_gpus(units: int, **more: Any) -> dict[str, Any]:
    made = service(**more)
    made["resources"]["gpu"]["units"]["val"] = str(units)
    return group(made)


async def test_a_gpu_belongs_to_one_replica_at_a_time(machine: Machine, tmp_path: Path) -> None:
    folder = tmp_path / "cdi"
    _describe(folder)
    offered = {
        "gpus": ("vendor.example/gpu=0",),
        "gpu_model": "vendor/nvidia/model/a100",
        "cdi_folders": (str(folder),),
    }
    async with machine.provider(**offered) as provider:
        assert next(iter(provider.deploy.inventory.nodes.values())).offered.gpu == 1
        await provider.up(_with_gpus(1))
        seen = await provider.run(
            "echo $DRIVER $GPU; cat /usr/lib/libdriver.so.1; echo; head -c 3 /dev/gpu0 | wc -c"
        )
        assert seen.split("\n")[:3] == ["yes 0", "a driver", "3"]
        # Another lease waits for it, and is told so.
        await provider.put(_with_gpus(1, hosts=["b.localhost"]), "h1", OTHER)
        failed = (await provider.until("deploy.failed", "h1", OTHER)).payload
        assert (failed.code, failed.final) == ("no_gpu", False)
        assert "in use" in failed.message
    # Who has it is known to the next provider; an update hands it over.
    async with machine.provider(**offered) as provider:
        await eventually(lambda: provider.deploy.knows(LEASE))
        await provider.put(_with_gpus(1, env=["V=2"]), "h2")
        await provider.until("deploy.healthy", "h2")
        assert await provider.run("echo $V $GPU") == "2 0\n"
        await provider.close()
        await provider.until("deploy.removed")
        await provider.until("deploy.healthy", "h1", OTHER)


def test_what_no_file_describes_is_refused_with_its_name(tmp_path: Path) -> None:
    _describe(tmp_path / "cdi")
    with pytest.raises(LeaseholdError, match="gpu=7") as told:
        cdi.find(["vendor.example/gpu=0", "vendor.example/gpu=7"], [str(tmp_path / "cdi")])
    assert told.value.kind is Kind.UNSUPPORTED
    (tmp_path / "cdi/broken.yaml").write_text("kind: [")
    with pytest.raises(LeaseholdError, match="broken"):
        cdi.find(["vendor.example/gpu=0"], [str(tmp_path / "cdi")])


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        ([], True),
        (["vendor/nvidia/model/a100"], True),
        (["vendor/nvidia/model/*"], True),
        (["vendor/nvidia/model/t4", "vendor/nvidia/model/a100/ram/80Gi"], True),
        (["vendor/nvidia/model/a100/ram/40Gi"], False),
        (["vendor/amd"], False),
    ],
)
def test_a_gpu_is_offered_to_who_asked_for_its_like(asked: list[str], fits: bool) -> None:
    gpu = GPU(Val.of(1), [Attribute(key, "true") for key in asked])
    assert suits("vendor.nvidia.model.a100.ram.80Gi", Resources(1, gpu=gpu)) is fits
