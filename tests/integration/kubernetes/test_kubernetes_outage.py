"""The API server goes away, falls silent, refuses; the provider is killed: nothing is concluded."""

from __future__ import annotations

import asyncio

import pytest
from conftest_kubernetes import Place, Provider, eventually, group, service

from leasehold.core.errors import LeaseholdError

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(180)]


def health(provider: Provider) -> bool | None:
    return provider.deploy._deployments[provider.lease].health.healthy


async def test_an_api_server_that_is_killed_makes_health_unknown_and_closes_nothing(
    cluster: Place,
) -> None:
    async with cluster.provider(monitor_attempts=2) as provider:
        await provider.up(group(service()))
        await eventually(lambda: health(provider) is True)
        pods = provider.pods()
        await asyncio.to_thread(cluster.plane.kill, "apiserver")
        await eventually(lambda: health(provider) is None)
        status = await provider.deploy.status(provider.lease)
        assert status["healthy"] is None
        assert "cannot be reached" in status["reason"]
        assert status["services"]["web"]["available"] is None
        # Many more checks than attempts would allow.
        await asyncio.sleep(2.5)
        assert health(provider) is None
        assert cluster.market.closed == []
        with pytest.raises(LeaseholdError, match="cannot be reached"):
            await provider.deploy.exec(provider.lease, "web", ["true"])
        # What is asked meanwhile waits, and is done afterwards.
        await provider.put(group(service(image="ok:2")), "h2")
        await asyncio.to_thread(cluster.plane.restart_api)
        await provider.until("deploy.healthy", "h2", seconds=90)
        await eventually(lambda: health(provider) is True)
        assert cluster.market.closed == []
        assert pods != provider.pods()
        assert "deploy.unhealthy" not in await provider.types()


async def test_an_api_server_that_falls_silent_is_noticed(cluster: Place) -> None:
    async with cluster.provider(watch_seconds=1, request_timeout=2.0) as provider:
        await provider.up(group(service()))
        await eventually(lambda: health(provider) is True)
        cluster.plane.freeze("apiserver")
        try:
            await eventually(lambda: health(provider) is None)
        finally:
            cluster.plane.thaw("apiserver")
        await eventually(lambda: health(provider) is True)
        assert "deploy.unhealthy" not in await provider.types()


async def test_a_provider_starts_while_the_api_server_is_away(cluster: Place) -> None:
    async with cluster.provider() as provider:
        await provider.up(group(service()))
        pods = provider.pods()
    await asyncio.to_thread(cluster.plane.kill, "apiserver")
    async with cluster.provider() as provider:
        await eventually(lambda: provider.deploy._deployments)
        assert (await provider.deploy.status(provider.lease))["healthy"] is None
        await asyncio.to_thread(cluster.plane.restart_api)
        await eventually(lambda: health(provider) is True, 60)
        assert provider.pods() == pods
        # A lease that closed meanwhile is removed.
        await provider.close()
        await provider.until("deploy.removed", seconds=100)


async def test_a_workload_that_will_not_stay_up_is_given_back(cluster: Place) -> None:
    async with cluster.provider(monitor_attempts=2) as provider:
        await provider.up(group(service()))
        (pod,) = provider.deploy.cluster.of("Pod", provider.namespace)
        cluster.kubelet._known[pod["metadata"]["uid"]].cancel()
        await cluster.kubelet._say(pod, restarts=5, crashed=True)
        unhealthy = (await provider.until("deploy.unhealthy")).payload
        assert "it ended 5 times" in unhealthy.reason
        ended = (await provider.until("deploy.exited")).payload
        assert (ended.status, ended.service) == (3 << 8, "web")
        await eventually(lambda: cluster.market.closed)
        assert cluster.market.closed[0] == (provider.lease, 10000)


async def test_orphans_are_swept_by_label(cluster: Place) -> None:
    async with cluster.provider(orphan_grace=3600.0) as provider:
        await provider.up(group(service()))
        other = cluster.lease_of(7)
        await provider.put(group(service(hosts=("other.test",))), "h1", other)
        await provider.until("deploy.healthy", "h1", other)
        unknown = Provider(provider.log, provider.deploy, other).namespace
        closed = provider.namespace
    # The provider's log is lost altogether.
    for file in cluster.folder.glob("events.sqlite3*"):
        file.unlink()
    async with cluster.provider(orphan_grace=3600.0) as provider:
        await provider.close(cluster.lease)
        await eventually(lambda: provider.deploy.cluster.reachable)
        # One is over; of the other it never heard: that is left alone for the grace.
        assert await provider.deploy.sweep() == [closed]
    async with cluster.provider(orphan_grace=0.0) as provider:
        await eventually(lambda: provider.deploy.cluster.reachable)
        assert await provider.deploy.sweep() == [unknown]


async def test_what_nodes_offer_follows_the_nodes(cluster: Place) -> None:
    async with cluster.provider(offer_memory=0.5, inventory_period=0.2) as provider:
        (name,) = cluster.kubelet.nodes
        nodes = provider.deploy.inventory.nodes
        await eventually(lambda: name in provider.deploy.inventory.nodes)
        nodes = provider.deploy.inventory.nodes
        assert nodes[name].offered.cpu == 8000
        assert nodes[name].offered.memory == 32 << 30
        # What others run there is theirs.
        other = {
            "metadata": {"name": "theirs"},
            "spec": {
                "nodeName": name,
                "containers": [
                    {"name": "c", "image": "ok:1", "resources": {"requests": {"cpu": "1500m"}}}
                ],
            },
        }
        url = "api/v1/namespaces/default/pods"
        (await cluster.api.raw.post(url, json=other)).raise_for_status()
        await eventually(lambda: provider.deploy.inventory.nodes[name].offered.cpu == 6500)
        await cluster.api.raw.patch(
            f"api/v1/nodes/{name}",
            json={"spec": {"unschedulable": True}},
            headers={"Content-Type": "application/merge-patch+json"},
        )
        await eventually(lambda: name not in provider.deploy.inventory.nodes)
        await cluster.api.delete("Pod", "theirs", "default")
