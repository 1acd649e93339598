"""Updates on a real control plane: what moves, what stays, what is said when it goes wrong."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from conftest_kubernetes import Place, Provider, eventually, group, service

from leasehold.deploy.kubernetes import pods

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(120)]


def ready(provider: Provider) -> set[str]:
    """Replicas that requests may reach."""
    found = provider.deploy.cluster.of("Pod", provider.namespace)
    living = (p for p in found if not p["metadata"].get("deletionTimestamp"))
    return {p["metadata"]["name"] for p in living if pods.ready(p)}


@contextlib.asynccontextmanager
async def never_without(provider: Provider, least: int) -> AsyncIterator[None]:
    """Fewer than ``least`` ready replicas at any moment fail the test."""
    low: list[int] = []

    def look() -> None:
        found = provider.deploy.cluster.of("Pod", provider.namespace)
        living = [p for p in found if not p["metadata"].get("deletionTimestamp")]
        low.append(sum(map(pods.ready, living)))

    stop = provider.deploy.cluster.listen(provider.namespace, look)
    try:
        yield
    finally:
        stop()
    assert min(low, default=least) >= least, low


async def test_an_update_is_never_without_replicas_that_answer(cluster: Place) -> None:
    async with cluster.provider() as provider:
        await provider.up(group(service(count=2)))
        before = ready(provider)
        async with never_without(provider, 2):
            await provider.up(group(service(image="ok:2", count=2)), "h2")
        assert not before & ready(provider)
        # Only hosts and numbers: what runs is left alone.
        before = ready(provider)
        await provider.up(group(service(image="ok:2", count=3, hosts=("b.test",))), "h3")
        assert before < ready(provider)
        ingress = provider.deploy.cluster.get("Ingress", provider.namespace, "web-8080")
        assert ingress and ingress["spec"]["rules"][0]["host"] == "b.test"


async def test_services_are_added_renamed_and_dropped(cluster: Place) -> None:
    async with cluster.provider() as provider:
        await provider.up(group(service(), service("db", hosts=("db.test",))))
        web = next(name for name in provider.pods() if name.startswith("web"))
        secret = {"host": "r.test", "username": "u", "password": "p"}
        await provider.up(
            group(service(), service("store", hosts=("db.test",), credentials=secret)), "h2"
        )
        await eventually(lambda: not any(name.startswith("db") for name in provider.pods()))
        assert web in provider.pods()
        assert await cluster.api.get("Secret", "store-pull", provider.namespace)
        await provider.up(group(service()), "h3")
        await eventually(lambda: provider.pods() == [web])
        for kind in ("Deployment", "Service", "Ingress"):
            names = {i["metadata"]["name"] for i in (await _list(cluster, kind, provider))}
            assert not any(name.startswith(("db", "store")) for name in names), names
        assert await cluster.api.get("Secret", "store-pull", provider.namespace) is None


async def _list(cluster: Place, kind: str, provider: Provider) -> list[dict[str, Any]]:
    found, _ = await cluster.api.list(kind, provider.namespace)
    return [item for item in found if not item["metadata"].get("deletionTimestamp")]


@pytest.mark.parametrize(
    ("image", "code", "words"),
    [
        ("missing:2", "image_pull_failed", "not found"),
        ("crash:2", "keeps_ending", "exit code 3"),
        ("broken:2", "cannot_start", "no such file"),
        ("silent:2", "not_answering", "did not answer"),
    ],
)
async def test_a_failed_update_keeps_the_old_version_and_says_why(
    cluster: Place, image: str, code: str, words: str
) -> None:
    async with cluster.provider(start_deadline=3.0) as provider:
        await provider.up(group(service()))
        before = ready(provider)
        async with never_without(provider, 1):
            await provider.put(group(service(image=image)), "h2")
            failed = (await provider.until("deploy.failed", "h2")).payload
            assert failed.code == code
            assert words in failed.message
            await eventually(lambda: len(provider.pods()) == 1)
        assert ready(provider) == before
        status = await provider.deploy.status(provider.lease)
        assert status["running_hash"] == "h1"
        assert status["error"]["code"] == code
        assert status["healthy"] is True
        # And a better one goes in.
        await provider.up(group(service(image="ok:3")), "h3")


async def test_a_first_version_that_fails_stays_and_may_come_up_late(cluster: Place) -> None:
    async with cluster.provider(start_deadline=2.0) as provider:
        await provider.put(group(service(image="flaky:1")), "h1")
        failed = (await provider.until("deploy.failed", "h1")).payload
        assert failed.code == "image_pull_failed"
        assert "i/o timeout" in failed.message
        (pod,) = provider.deploy.cluster.of("Pod", provider.namespace)
        await cluster.kubelet._say(pod, ready=True)
        await provider.until("deploy.healthy", "h1")


async def test_a_full_cluster_replaces_instead_of_waiting_for_ever(cluster: Place) -> None:
    async with cluster.provider() as provider:
        await provider.up(group(service(cpu=5000)))  # The node has 8000.
        await provider.up(group(service(image="ok:2", cpu=5000)), "h2")
        status = await provider.deploy.status(provider.lease)
        assert status["running_hash"] == "h2"


async def test_no_room_is_said(cluster: Place) -> None:
    async with cluster.provider() as provider:
        await provider.put(group(service(cpu=9000)), "h1")
        failed = (await provider.until("deploy.failed", "h1")).payload
        assert failed.code == "no_room"
        assert "Insufficient cpu" in failed.message


async def test_a_lease_closed_in_the_middle_of_an_update_is_removed(cluster: Place) -> None:
    async with cluster.provider() as provider:
        await provider.up(group(service()))
        await provider.put(group(service(image="silent:2")), "h2")
        await eventually(lambda: len(provider.pods()) == 2)
        await provider.close()
        await provider.until("deploy.removed")
        assert await cluster.api.get("Namespace", provider.namespace) is None


def disk(name: str, mount: str, size: int = 1 << 20) -> tuple[dict[str, Any], dict[str, Any]]:
    kind = [{"key": "persistent", "value": "true"}, {"key": "class", "value": "beta2"}]
    storage = {"name": name, "size": {"val": str(size)}, "attributes": kind}
    return storage, {"name": name, "mount": mount}


def stateful(image: str, *mounts: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    made = service(image=image, count=2)
    made["resources"]["storage"] += [storage for storage, _ in mounts]
    made["params"] = {"storage": [mount for _, mount in mounts]}
    return made


async def test_claims_can_change_although_sets_cannot(cluster: Place) -> None:
    """Volumes are bound late by the scheduler; here a class that needs no provisioner."""
    await cluster.api.apply(
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": "beta2"},
            "provisioner": "kubernetes.io/no-provisioner",
        }
    )
    volumes = [f"v{number}-{cluster.address[-6:]}" for number in range(5)]
    for name in volumes:
        spec = {
            "capacity": {"storage": "2Mi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "beta2",
            "hostPath": {"path": f"/tmp/{name}"},
        }
        body = {"metadata": {"name": name}, "spec": spec}
        answer = await cluster.api.raw.post("api/v1/persistentvolumes", json=body)
        answer.raise_for_status()
    async with cluster.provider() as provider:
        await provider.up(group(stateful("ok:1", disk("data", "/data"))))
        assert provider.pods() == ["web-0", "web-1"]
        await provider.up(group(stateful("ok:2", disk("data", "/data"))), "h2", 60)
        await provider.up(
            group(stateful("ok:2", disk("data", "/data"), disk("more", "/more"))), "h3", 90
        )
        # The replicas that were taken over lacked the second volume: these are others.
        for pod in provider.deploy.cluster.of("Pod", provider.namespace):
            claims = {v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"]}
            name = pod["metadata"]["name"]
            assert claims == {f"web-data-{name}", f"web-more-{name}"}
        # A broken update of a set does not block the way back.
        await provider.put(
            group(stateful("crash:4", disk("data", "/data"), disk("more", "/more"))), "h4"
        )
        failed = (await provider.until("deploy.failed", "h4")).payload
        assert failed.code == "keeps_ending"
        await eventually(lambda: ready(provider) == {"web-0", "web-1"})
    for name in volumes:
        await cluster.api.raw.delete(f"api/v1/persistentvolumes/{name}")
