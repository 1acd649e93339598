"""A deployment on a cluster in memory, in virtual time: outages, restarts, giving up."""

from __future__ import annotations

from decimal import Decimal

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.deploy.driver import History
from leasehold.deploy.inventory import Amounts
from leasehold.deploy.kubernetes import inventory, pods
from leasehold.deploy.kubernetes.exec import exit_code
from leasehold.deploy.kubernetes.testing import ClusterBench
from leasehold.deploy.settings import DeploySettings
from leasehold.deploy.testing import service, workload


def test_up_and_removed(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = ClusterBench(virtual)
        async with bench.running() as deployment:
            deployment.want(workload("h1"))
            await bench.until(lambda: "WorkloadHealthy" in bench.kinds())
            assert bench.kinds() == ["WorkloadRunning", "WorkloadHealthy"]
            assert deployment.error is None
            deployment.close()
            await bench.until(deployment.gone.is_set)
            assert not any(bench.api.held[kind] for kind in bench.api.held)

    virtual.run(main)


def test_unhealthy_unknown_and_healthy_are_told_apart(virtual: VirtualClock) -> None:
    """What turned out well during an outage is told as well, though unknown lay between."""

    async def main() -> None:
        bench = ClusterBench(virtual)
        async with bench.running() as deployment:
            deployment.want(workload("h1"))
            await bench.until(lambda: deployment.health.healthy is True)
            (item,) = bench.api.held["Deployment"].values()
            bench.api.silent.add("web")
            bench.api.settle(item)
            await bench.until(lambda: deployment.health.unhealthy_checks == 3)
            bench.api.away = True
            await bench.until(lambda: deployment.health.healthy is None, 1)
            await bench.clock.sleep(3600)
            assert deployment.health.unhealthy_checks == 3
            bench.api.silent.clear()
            bench.api.settle(item)
            bench.api.away = False
            await bench.until(lambda: deployment.health.healthy is True, 60)
            assert bench.kinds()[-2:] == ["WorkloadUnhealthy", "WorkloadHealthy"]

    virtual.run(main)


def test_a_burst_of_changes_is_not_a_row_of_failures(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = ClusterBench(virtual)
        async with bench.running() as deployment:
            deployment.want(workload("h1"))
            await bench.until(lambda: deployment.health.healthy is True)
            (item,) = bench.api.held["Deployment"].values()
            bench.api.silent.add("web")
            for _ in range(100):
                bench.api.settle(item)
                await bench.clock.sleep(0.01)
            assert deployment.health.unhealthy_checks <= 1
            await bench.until(lambda: bool(bench.market.closed), 3600)
            assert bench.market.closed[0][1] == 10000

    virtual.run(main)


@pytest.mark.parametrize("away", [False, True])
def test_another_provider_applies_nothing(virtual: VirtualClock, away: bool) -> None:
    async def main() -> None:
        bench = ClusterBench(virtual)
        first = workload("h1", service(), service("db", expose=[]))
        async with bench.running() as deployment:
            deployment.want(first)
            await bench.until(lambda: deployment.health.healthy is True)
            applied = deployment.applied
        assert applied is not None
        bench.history = History("h1", applied.revisions, workload=first, healthy=True)
        bench.api.applied = 0
        bench.api.away = away
        bench.restart()
        async with bench.running() as deployment:
            deployment.want(first)
            if away:
                await bench.clock.sleep(600)
                assert deployment.health.healthy is None
                bench.api.away = False
            await bench.until(lambda: deployment.health.healthy is True, 60)
            assert bench.api.applied == 0

    virtual.run(main)


def test_a_host_name_that_moved_away_no_longer_leads_here(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = ClusterBench(virtual)
        async with bench.running() as deployment:
            deployment.want(workload("h1"))
            await bench.until(lambda: deployment.health.healthy is True)
            assert bench.api.held["Ingress"]
            assert bench.driver.allow(bench.deployment.lease, [], [])
            await deployment.point()
            assert not bench.api.held["Ingress"]

    virtual.run(main)


def test_a_host_name_that_moves_during_an_outage_moves_afterwards(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = ClusterBench(virtual)
        async with bench.running() as deployment:
            given = service(expose=[{"port": 80, "proto": "TCP", "global": True,
                                     "hosts": ["a.test", "b.test"]}])  # fmt: skip
            deployment.want(workload("h1", given))
            await bench.until(lambda: deployment.health.healthy is True)
            bench.api.away = True
            assert bench.driver.allow(deployment.lease, ["b.test"], None)
            await deployment.point()
            await bench.clock.sleep(60)
            bench.api.away = False

            def hosts() -> list[str]:
                (found,) = bench.api.held["Ingress"].values()
                return [rule["host"] for rule in found["spec"]["rules"]]

            await bench.until(lambda: hosts() == ["a.test"], 60)
            bench.api.away = True
            assert bench.driver.allow(deployment.lease, [], [])
            await deployment.point()
            bench.api.away = False
            await bench.until(lambda: not bench.api.held["Ingress"], 60)

    virtual.run(main)


def test_trouble_is_told_of_the_service_that_has_it(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = ClusterBench(virtual, start_deadline=30.0)
        bench.api.silent.add("slow")
        async with bench.running() as deployment:
            deployment.want(workload("h1", service(), service("slow", expose=[])))
            await bench.until(lambda: deployment.error is not None)
            assert deployment.error is not None
            assert deployment.error.code == "not_answering"
            assert "did not answer within 30 s" in deployment.error.message
            # It stays, and may come up late.
            (item,) = (i for i in bench.api.held["Deployment"].values()
                       if i["metadata"]["name"] == "slow")  # fmt: skip
            bench.api.silent.clear()
            bench.api.settle(item)
            await bench.until(lambda: deployment.health.healthy is True)

    virtual.run(main)


def test_room_that_is_found_in_time_is_not_a_failure(virtual: VirtualClock) -> None:
    """However late it is looked for: the grace begins when a replica is first without room."""

    async def main() -> None:
        bench = ClusterBench(virtual, start_deadline=60.0)
        bench.api.silent.add("web")
        async with bench.running() as deployment:
            deployment.want(workload("h1"))
            await bench.until(lambda: bool(bench.api.held.get("Deployment")))
            (item,) = bench.api.held["Deployment"].values()
            await bench.clock.sleep(30.0)  # Say, others were in the way.
            bench.api.crowd(item)
            await bench.clock.sleep(bench.settings.kubernetes.no_room_grace / 2)
            assert deployment.error is None
            bench.api.crowd(item, room=True)
            bench.api.silent.clear()
            bench.api.settle(item)
            await bench.until(lambda: deployment.health.healthy is True)
            assert "DeployFailed" not in bench.kinds()

    virtual.run(main)


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", "0.5"), ("2", "2"), ("1Ki", "1024"), ("24684096Ki", "25276514304"), ("1e3", "1000"),
     ("1E", "1000000000000000000"), ("0.5Gi", "536870912"), ("100n", "1E-7"), ("lots", "0"),
     ("3Kib", "0")],
)  # fmt: skip
def test_quantities(text: str, value: str) -> None:
    assert inventory.quantity(text) == Decimal(value)


def test_nodes_offer_what_others_leave() -> None:
    ready = [{"type": "Ready", "status": "True"}]
    allocatable = {"cpu": "3", "memory": "4Gi", "ephemeral-storage": "10Gi", "nvidia.com/gpu": "2"}

    def node(name: str, **spec: object) -> dict[str, object]:
        return {
            "metadata": {
                "name": name,
                "labels": {
                    "leasehold.dev/gpu.vendor.nvidia": "",
                    "leasehold.dev/gpu.vendor.nvidia.model.a100": "",
                },
            },
            "spec": spec,
            "status": {"conditions": ready, "allocatable": allocatable},
        }

    other = {
        "spec": {
            "nodeName": "a",
            "containers": [{"resources": {"requests": {"cpu": "500m", "memory": "1Gi"}}}] * 2,
            "initContainers": [{"resources": {"requests": {"memory": "3Gi"}}}],
        }
    }
    settings = DeploySettings(offer_memory=1.0, offer_storage=1.0, overcommit_cpu=50)
    found = inventory.nodes(
        [node("a"), node("b", unschedulable=True),
         node("c", taints=[{"key": "x", "effect": "NoSchedule"}])],
        [other], ["fast"], settings,
    )  # fmt: skip
    assert [n.name for n in found] == ["a"]
    assert found[0].offered == Amounts(cpu=3000, memory=1 << 30, storage=10 << 30, gpu=2)
    assert found[0].gpu_model == "vendor.nvidia.model.a100"
    assert found[0].classes == {"default", "ram", "fast"}


def test_exit_codes_of_commands() -> None:
    assert exit_code({"status": "Success"}) == 0
    causes = [{"reason": "ExitCode", "message": "137"}]
    failed = {"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}}
    assert exit_code(failed) == 137
    assert exit_code({"status": "Failure", "reason": "InternalError"}) is None


def test_a_container_that_ended_is_seen_once() -> None:
    """It shows first as the present state, later as the last one: the same end both times."""
    ended = {"terminated": {"exitCode": 3, "reason": "Error"}}

    def pod(**status: object) -> dict[str, object]:
        return {"metadata": {"name": "p"}, "status": {"containerStatuses": [status]}}

    (now,) = pods.exits(pod(restartCount=0, state=ended))
    (later,) = pods.exits(pod(restartCount=1, state={"running": {}}, lastState=ended))
    assert (now.pod, now.count, now.status) == (later.pod, later.count, later.status)
    assert (now.former, later.former) == (False, True)
