"""Members of a Kubernetes cluster, with an API server in memory that the test breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from leasehold.core.clock import VirtualClock
from leasehold.core.service import running
from leasehold.images.kubernetes import ADDRESSES, PEER_ID, TRANSFER, ZONE, KubernetesMembers
from leasehold.images.membership import Member
from leasehold.p2p.keys import KeyPair

PEERS = [str(KeyPair.from_seed(bytes([i]) * 32).peer_id) for i in range(6)]


def pod(number: int, *, ready: bool = True, peer: str | None = None, **status: Any) -> Any:
    said = {
        PEER_ID: peer or PEERS[number],
        ADDRESSES: f"/ip4/10.0.0.{number}/tcp/29401/p2p/{PEERS[number]}",
        TRANSFER: f"10.0.0.{number}:29501",
    }
    return {
        "metadata": {"name": f"agent-{number}", "annotations": said if peer != "" else {}},
        "spec": {"nodeName": f"node-{number}"},
        "status": {
            "phase": "Running",
            "podIP": f"10.0.0.{number}",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            **status,
        },
    }


class Api:
    """Lists what is in ``objects``; ``change`` reaches the watches; ``down`` breaks everything."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {"pods": {}, "nodes": {}}
        self.watches: dict[str, set[asyncio.Queue[Any]]] = {"pods": set(), "nodes": set()}
        self.annotations: dict[str, str] = {}
        self.down = False
        self.tries = 0

    def put(self, kind: str, item: Any, change: str = "MODIFIED") -> None:
        name = item["metadata"]["name"]
        if change == "DELETED":
            self.objects[kind].pop(name, None)
        else:
            self.objects[kind][name] = item
        for queue in self.watches[kind]:
            queue.put_nowait((change, item))

    def fail(self) -> None:
        self.down = True
        for queues in self.watches.values():
            for queue in queues:
                queue.put_nowait(None)

    async def list(self, kind: str) -> tuple[list[Any], str]:
        self.tries += 1
        if self.down:
            raise OSError("connection refused")
        return list(self.objects[kind].values()), "1"

    async def watch(self, kind: str, version: str) -> AsyncIterator[tuple[str, Any]]:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        self.watches[kind].add(queue)
        try:
            while (change := await queue.get()) is not None:
                yield change
            raise OSError("connection reset")
        finally:
            self.watches[kind].discard(queue)

    async def annotate(self, annotations: Mapping[str, str]) -> None:
        if self.down:
            raise OSError("connection refused")
        self.annotations = dict(annotations)

    async def close(self) -> None: ...


def test_ready_pods_are_elected_and_others_only_known(virtual: VirtualClock) -> None:
    async def main() -> None:
        api = Api()
        zone = {"metadata": {"name": "node-0", "labels": {ZONE: "eu-1"}}}
        api.objects["nodes"]["node-0"] = zone
        for item in (
            pod(0), pod(1, ready=False), pod(2, phase="Pending"), pod(3, peer=""),
            pod(4, peer="not a peer id"), pod(5, podIP=None),
        ):  # fmt: skip
            api.put("pods", item)
        members = KubernetesMembers(api, "agent-1", clock=virtual)
        views = []
        members.changed.append(views.append)
        assert members.unready() == ["members not synced", "announce pending"]
        async with running(members):
            await virtual.sleep(1)
            assert list(members.view.members) == ["node-0"]
            assert list(members.known.members) == ["node-0", "node-1"]
            assert members.view.members["node-0"] == Member(
                node="node-0", peer_id=PEERS[0], zone="eu-1", transfer="10.0.0.0:29501",
                addresses=(f"/ip4/10.0.0.0/tcp/29401/p2p/{PEERS[0]}",),
            )  # fmt: skip
            members.announce_own(Member(node="node-1", peer_id=PEERS[1], transfer="10.0.0.1:1"))
            await virtual.sleep(0)
            assert api.annotations[PEER_ID] == PEERS[1]
            assert members.unready() == []
            # Ten changes at once are one new view.
            before = len(views)
            for number in (1, 2, 3, 4, 5):
                api.put("pods", pod(number))
            await virtual.sleep(1)
            assert len(members.view) == 6
            assert len(views) == before + 1
            ending = pod(1)
            ending["metadata"]["deletionTimestamp"] = "2026-11-01T00:00:00Z"
            api.put("pods", ending)
            api.put("pods", pod(2), "DELETED")
            await virtual.sleep(1)
            assert list(members.known.members) == ["node-0", "node-3", "node-4", "node-5"]

    virtual.run(main)


def test_an_api_server_that_is_gone_changes_nothing(virtual: VirtualClock) -> None:
    async def main() -> None:
        api = Api()
        for number in range(3):
            api.put("pods", pod(number))
        members = KubernetesMembers(api, "agent-0", clock=virtual)
        async with running(members):
            await virtual.sleep(1)
            api.fail()
            members.announce_own(Member(node="node-0", peer_id=PEERS[0]))
            api.objects["pods"].pop("agent-2")  # nobody is told
            await virtual.sleep(600)
            assert len(members.view) == 3
            assert members.unready() == ["announce pending"]
            assert api.tries <= 2 * (600 / 30 + 10), "waited longer each time"
            api.down = False
            await virtual.sleep(60)
            assert list(members.view.members) == ["node-0", "node-1"], "listed anew"
            assert members.unready() == []

    virtual.run(main)


def test_a_pod_that_follows_another_on_its_node(virtual: VirtualClock) -> None:
    async def main() -> None:
        api = Api()
        successor = pod(2)
        successor["spec"]["nodeName"] = "node-1"
        api.put("pods", pod(1))
        members = KubernetesMembers(api, "agent-0", clock=virtual)
        async with running(members):
            api.put("pods", {**successor, "status": pod(2, ready=False)["status"]})
            await virtual.sleep(1)
            assert members.known.members["node-1"].peer_id == PEERS[1]
            api.put("pods", pod(1, ready=False))
            api.put("pods", successor)
            await virtual.sleep(1)
            assert members.view.members["node-1"].peer_id == PEERS[2]

    virtual.run(main)
