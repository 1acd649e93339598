"""A lease from manifest to healthy to nothing left, on a real API server."""

from __future__ import annotations

import pytest
from conftest_kubernetes import Place, Provider, eventually, group, service

from leasehold.deploy.kubernetes import pods

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(120)]


async def test_from_manifest_to_healthy_to_nothing_left(cluster: Place) -> None:
    async with cluster.provider() as provider:
        await provider.up(group(service(count=2)))
        assert await provider.types() == [
            "manifest.received",
            "deploy.image_pulled",
            "deploy.started",
            "deploy.started",
            "deploy.running",
            "deploy.healthy",
        ]
        await eventually(lambda: provider.deploy._deployments[provider.lease].health.healthy)
        status = await provider.deploy.status(provider.lease)
        assert status["healthy"] is True
        assert status["services"]["web"]["available"] == 2
        assert status["uris"] == ["http://a.test"]
        await provider.close()
        await provider.until("deploy.removed")
        assert await cluster.api.get("Namespace", provider.namespace) is None


async def test_what_is_applied_stays_as_it_was_applied(cluster: Place) -> None:
    async with cluster.provider() as provider:
        await provider.up(group(service(count=2)))
        api, name = cluster.api, provider.namespace
        # Scaled by hand, removed by hand: it comes back. The API server itself is asked: the
        # provider may not have heard yet.
        await api.raw.patch(
            f"apis/apps/v1/namespaces/{name}/deployments/web",
            json={"spec": {"replicas": 0}},
            headers={"Content-Type": "application/merge-patch+json"},
        )
        await eventually(lambda: _replicas(cluster, name, 2))
        await api.delete("Ingress", "web-8080", name)
        await eventually(lambda: api.get("Ingress", "web-8080", name))
        await api.raw.patch(
            f"api/v1/namespaces/{name}/services/web",
            json={"spec": {"ports": [{"port": 81, "targetPort": 81}]}},
            headers={"Content-Type": "application/merge-patch+json"},
        )
        await eventually(lambda: _ports(cluster, name, [80]))
        await eventually(lambda: _settled(cluster, name))
        running = await _pods(cluster, name)

    # A provider that starts again finds all as it left it, and touches nothing.
    versions = await _versions(cluster, name)
    async with cluster.provider() as provider:
        await eventually(lambda: provider.deploy._deployments)
        await eventually(lambda: _healthy(provider))
        assert await _pods(cluster, name) == running
        assert await _versions(cluster, name) == versions


async def test_a_change_while_the_provider_was_away_is_taken_back(cluster: Place) -> None:
    async with cluster.provider() as provider:
        await provider.up(group(service()))
        name = provider.namespace
    await cluster.api.raw.patch(
        f"apis/apps/v1/namespaces/{name}/deployments/web",
        json={"spec": {"replicas": 3}},
        headers={"Content-Type": "application/merge-patch+json"},
    )
    assert await _replicas(cluster, name, 3)
    async with cluster.provider():
        await eventually(lambda: _replicas(cluster, name, 1))


async def _settled(cluster: Place, name: str) -> bool:
    found = await cluster.api.get("Deployment", "web", name)
    return pods.progress(found, 0).settled and len(await _pods(cluster, name)) == 2


async def _replicas(cluster: Place, name: str, count: int) -> bool:
    found = await cluster.api.get("Deployment", "web", name)
    return found is not None and found["spec"]["replicas"] == count


async def _ports(cluster: Place, name: str, numbers: list[int]) -> bool:
    found = await cluster.api.get("Service", "web", name)
    return found is not None and [port["port"] for port in found["spec"]["ports"]] == numbers


async def _pods(cluster: Place, name: str) -> set[str]:
    return {pod["metadata"]["name"] for pod in (await cluster.api.list("Pod", name))[0]}


def _healthy(provider: Provider) -> bool:
    found = provider.deploy._deployments.get(provider.lease)
    return found is not None and found.health.healthy is True


async def _versions(cluster: Place, namespace: str) -> dict[tuple[str, str], str]:
    """The version of everything we apply: any write to it would change it."""
    found = {}
    for kind in ("NetworkPolicy", "Deployment", "Service", "Ingress", "Pod"):
        for item in (await cluster.api.list(kind, namespace))[0]:
            found[kind, item["metadata"]["name"]] = item["metadata"]["resourceVersion"]
    return found
