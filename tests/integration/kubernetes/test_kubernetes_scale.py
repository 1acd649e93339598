"""200 leases at once on hollow nodes: kubelets without containers, everything else as it is."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from acting_kubelet import ActingKubelet
from conftest_kubernetes import Place, eventually, group, service
from control_plane import ControlPlane, free_port, programs

from leasehold.deploy.kubernetes.api import Api
from leasehold.deploy.kubernetes.settings import KubernetesSettings

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(300)]

LEASES, CLOSED = 200, 30
NODES = 2


@pytest.fixture
def hollow(plane: ControlPlane) -> Iterator[list[str]]:
    """Names of hollow nodes."""
    names = [f"hollow-{number}" for number in range(NODES)]
    for name in names:
        plane.run(
            name,
            str(programs() / "kubemark"),
            "--morph=kubelet",
            f"--name={name}",
            f"--kubeconfig={plane.kubeconfig('admin')}",
            "--max-pods=250",
            "--use-host-image-service=false",
            f"--kubelet-port={free_port()}",
            f"--kubelet-read-only-port={free_port()}",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        )
    yield names
    for name in names:
        plane.kill(name)


async def test_two_hundred_leases(plane: ControlPlane, hollow: list[str], tmp_path: Path) -> None:
    settings = KubernetesSettings(kubeconfig=str(plane.kubeconfig("admin")))
    async with Api(settings) as api:
        place = Place(plane, tmp_path, api, ActingKubelet(api, {}), "akash1providerscale")
        await eventually(lambda: _ready(api, hollow), 60)
        async with place.provider(
            start_deadline=200.0, monitor_period=10.0, monitor_jitter=5.0, watch_seconds=30
        ) as provider:
            leases = [place.lease_of(number) for number in range(1, LEASES + 1)]
            began = time.monotonic()
            for lease in leases:
                made = service(image="busybox:1", cpu=10, hosts=(f"h{lease.dseq}.test",))
                made["resources"]["memory"]["size"]["val"] = str(1 << 20)
                made["resources"]["storage"] = []  # Hollow nodes have no disk.
                made["expose"][0]["proto"] = "UDP"  # Hollow replicas accept no connections.
                await provider.put(group(made), "h1", lease)
            async with asyncio.TaskGroup() as tasks:
                for lease in leases:
                    tasks.create_task(provider.until("deploy.healthy", "h1", lease, 240))
            took = time.monotonic() - began
            print(f"\n{LEASES} leases healthy after {took:.1f} s ({LEASES / took:.1f} a second)")
            before = os.times()
            await asyncio.sleep(5.0)
            after = os.times()
            cpu = (after.user + after.system - before.user - before.system) / 5.0
            memory = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20
            print(f"idle with {LEASES} leases: {100 * cpu:.1f} % of a CPU, {memory} MiB resident")
            healths = [provider.deploy._deployments[lease].health.healthy for lease in leases]
            assert healths == [True] * LEASES

        # Another provider takes them over: nothing is applied.
        versions = await _versions(api)
        async with place.provider(watch_seconds=30) as provider:
            began = time.monotonic()
            await eventually(
                lambda: (
                    sum(d.health.healthy is True for d in provider.deploy._deployments.values())
                    == LEASES
                ),
                60,
            )
            print(f"{LEASES} leases adopted after {time.monotonic() - began:.1f} s")
            assert await _versions(api) == versions
            began = time.monotonic()
            closed = leases[:CLOSED]
            for lease in closed:
                await provider.close(lease)
            async with asyncio.TaskGroup() as tasks:
                for lease in closed:
                    tasks.create_task(provider.until("deploy.removed", None, lease, 240))
            print(f"{CLOSED} leases removed after {time.monotonic() - began:.1f} s")
            await provider.deploy.teardown_all()
        for name in hollow:
            await api.delete("Node", name)


async def _ready(api: Api, names: list[str]) -> bool:
    ready = [
        node["metadata"]["name"]
        for node in (await api.list("Node"))[0]
        if not node["spec"].get("taints")
        and any(
            c["type"] == "Ready" and c["status"] == "True"
            for c in node["status"].get("conditions", [])
        )
    ]
    return set(names) <= set(ready)


async def _versions(api: Api) -> dict[str, tuple[str, str]]:
    """By lease, the generation and the version of the spec that was applied."""
    found, _ = await api.list("Deployment", "*")
    return {
        item["metadata"]["namespace"]: (
            str(item["metadata"]["generation"]),
            item["metadata"]["labels"].get("leasehold.dev/applied", ""),
        )
        for item in found
        if item["metadata"]["labels"].get("leasehold.dev/provider") == "akash1providerscale"
    }
