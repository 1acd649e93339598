"""Image nodes find each other through a real API server, by annotations on their pods.

There is no kubelet here: the test makes the pods and says for each that it runs, as kubelets would.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from control_plane import ControlPlane

from leasehold.core.service import running
from leasehold.images import build
from leasehold.images.kubernetes import PEER_ID, ZONE, ApiServer, KubernetesMembers
from leasehold.images.memory import MemoryOrigin
from leasehold.images.node import ImagesNode
from leasehold.images.settings import ImagesSettings
from leasehold.p2p.settings import P2PSettings

pytestmark = pytest.mark.kubernetes

LABELS = {"app.kubernetes.io/name": "leasehold-images"}
PODS = "/api/v1/namespaces/default/pods"


class Pods:
    """Pods of agents, each on a node of its own."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane

    def add(self, number: int) -> None:
        """Running, and not ready."""
        node = {"metadata": {"name": f"node-{number}", "labels": {ZONE: f"zone-{number % 2}"}}}
        pod = {
            "metadata": {"name": f"agent-{number}", "labels": LABELS},
            "spec": {
                "nodeName": f"node-{number}",
                "containers": [{"name": "agent", "image": "leasehold"}],
                "tolerations": [{"operator": "Exists"}],
            },
        }
        self.plane.ask("/api/v1/nodes", data={"apiVersion": "v1", "kind": "Node", **node})
        self.plane.ask(PODS, data={"apiVersion": "v1", "kind": "Pod", **pod})
        self.says(number, ready=False)

    def get(self, number: int) -> Any:
        return json.loads(self.plane.ask(f"{PODS}/agent-{number}"))

    def says(self, number: int, *, ready: bool) -> None:
        """What the pod's kubelet would say."""
        pod = self.get(number)
        pod["status"] = {
            "phase": "Running",
            "podIP": "127.0.0.1",
            "podIPs": [{"ip": "127.0.0.1"}],
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        }
        self.plane.ask(f"{PODS}/agent-{number}/status", data=pod, method="PUT")

    def remove(self, number: int) -> None:
        at_once = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}
        self.plane.ask(f"{PODS}/agent-{number}", data=at_once, method="DELETE")


@pytest.fixture
def pods(plane: ControlPlane) -> Iterator[Pods]:
    yield Pods(plane)
    for kind in ("/api/v1/namespaces/default/pods", "/api/v1/nodes"):
        for item in json.loads(plane.ask(kind))["items"]:
            name = item["metadata"]["name"]
            if name.startswith(("agent-", "node-")) and name[-1].isdigit() and len(name) < 8:
                at_once = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}
                plane.ask(f"{kind}/{name}", data=at_once, method="DELETE")


@asynccontextmanager
async def agent(
    plane: ControlPlane, number: int, folder: Path, origin: MemoryOrigin
) -> AsyncIterator[ImagesNode]:
    kubeconfig = str(plane.kubeconfig("admin"))
    api = ApiServer("default", f"agent-{number}", LABELS, kubeconfig=kubeconfig)
    node = ImagesNode(
        folder / str(number),
        f"node-{number}",
        settings=ImagesSettings(transfer_host="127.0.0.1", transfer_port=0),
        p2p=P2PSettings(listen=["/ip4/127.0.0.1/tcp/0"]),
        members=KubernetesMembers(api, f"agent-{number}"),
        origin=origin,
        mirror=False,
    )
    async with running(node):
        yield node


async def until(condition: Any, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


async def test_a_fleet_of_pods(plane: ControlPlane, pods: Pods, tmp_path: Path) -> None:
    for number in range(3):
        await asyncio.to_thread(pods.add, number)
    origin = MemoryOrigin()
    built = build.image([build.layer({"x": os.urandom(300_000)})])
    origin.add(built, "1")
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(agent(plane, number, tmp_path, origin))
            for number in range(3)
        ]
        # Nobody is ready, and yet they find each other; being connected they become ready.
        await until(lambda: all(len(node.members.known) == 3 for node in nodes))
        assert all(len(node.members.view) == 0 for node in nodes)
        await until(lambda: all(node.not_ready() == [] for node in nodes))
        said = await asyncio.to_thread(pods.get, 1)
        assert said["metadata"]["annotations"][PEER_ID] == str(nodes[1].keys.peer_id)
        for number in range(3):
            await asyncio.to_thread(pods.says, number, ready=True)
        await until(lambda: all(len(node.members.view) == 3 for node in nodes))
        assert nodes[0].members.view.members["node-1"].zone == "zone-1"

        for node in nodes:
            await node.images.ensure("r.example/team/app:1")
        assert origin.bytes == built.size + len(built.manifest), "once for all three"

        # The API server dies: nobody leaves. It comes back: it is followed again.
        await asyncio.to_thread(plane.kill, "apiserver")
        await asyncio.sleep(2)
        assert all(len(node.members.view) == 3 for node in nodes)
        await asyncio.to_thread(plane.restart_api)
        await asyncio.to_thread(pods.says, 2, ready=False)
        await until(lambda: all("node-2" not in node.members.view.members for node in nodes))
        assert "node-2" in nodes[0].members.known.members
        await asyncio.to_thread(pods.remove, 2)
        await until(lambda: "node-2" not in nodes[0].members.known.members)
