"""Nodes find each other through a real API server, by annotations on their pods.

etcd and kube-apiserver only: there is no kubelet, so the test makes the pods and says for each that
it runs, as kubelets would. ``scripts/kubernetes/build`` makes the API server, once.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from leasehold.core.service import running
from leasehold.images import build
from leasehold.images.kubernetes import PEER_ID, ZONE, ApiServer, KubernetesMembers
from leasehold.images.memory import MemoryOrigin
from leasehold.images.node import ImagesNode
from leasehold.images.settings import ImagesSettings
from leasehold.p2p.settings import P2PSettings

pytestmark = pytest.mark.kubernetes

ROOT = Path(__file__).resolve().parents[3]
LABELS = {"app.kubernetes.io/name": "leasehold-images"}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class ControlPlane:
    """etcd and an API server of its own; everybody may do everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.etcd = free_port(), free_port()
        self.kubeconfig = folder / "kubeconfig"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        found = subprocess.run(
            [str(ROOT / "scripts/kubernetes/build")], check=True, capture_output=True, text=True
        )
        self.binary = Path(found.stdout.strip()) / "bin/kube-apiserver"
        (self.folder / "tokens.csv").write_text("secret,admin,admin,system:masters\n")
        key = self.folder / "sa.key"
        subprocess.run(
            ["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True
        )
        etcd = f"http://127.0.0.1:{self.etcd}"
        self._run(
            "etcd", "--data-dir", str(self.folder / "etcd"), "--listen-client-urls", etcd,
            "--advertise-client-urls", etcd, "--listen-peer-urls", f"http://127.0.0.1:{free_port()}",
        )  # fmt: skip
        self.start_api()
        self.kubeconfig.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "x",
                    "clusters": [
                        {
                            "name": "x",
                            "cluster": {
                                "server": f"https://127.0.0.1:{self.port}",
                                "insecure-skip-tls-verify": True,
                            },
                        }
                    ],
                    "users": [{"name": "x", "user": {"token": "secret"}}],
                    "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
                }
            )
        )

    def start_api(self) -> None:
        self.api = self._run(
            str(self.binary), "--etcd-servers", f"http://127.0.0.1:{self.etcd}",
            "--secure-port", str(self.port), "--bind-address", "127.0.0.1",
            "--cert-dir", str(self.folder / "certs"), "--service-cluster-ip-range", "10.96.0.0/16",
            "--token-auth-file", str(self.folder / "tokens.csv"), "--authorization-mode", "RBAC",
            "--service-account-issuer", "https://x", "--service-account-key-file",
            str(self.folder / "sa.key"), "--service-account-signing-key-file",
            str(self.folder / "sa.key"), "--disable-admission-plugins", "ServiceAccount",
        )  # fmt: skip

    def _run(self, *command: str) -> subprocess.Popen[bytes]:
        log = open(self.folder / f"{Path(command[0]).name}.log", "ab")  # noqa: SIM115
        process = subprocess.Popen(command, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def stop(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait(10)

    async def ready(self) -> None:
        async with asyncio.timeout(60):
            while True:
                done = await asyncio.to_thread(self.kubectl, "get", "--raw", "/readyz", check=False)
                if done.stdout.strip() == "ok":
                    return
                await asyncio.sleep(0.3)

    def kubectl(
        self, *arguments: str, given: Any = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["kubectl", "--kubeconfig", str(self.kubeconfig), *arguments],
            input=json.dumps(given) if given is not None else None,
            env={**os.environ, "HOME": str(self.folder)},
            check=check, capture_output=True, text=True,
        )  # fmt: skip

    def add(self, number: int) -> None:
        """A pod on a node of its own, running and not ready."""
        node = {"metadata": {"name": f"node-{number}", "labels": {ZONE: f"zone-{number % 2}"}}}
        pod = {
            "metadata": {"name": f"agent-{number}", "labels": LABELS},
            "spec": {
                "nodeName": f"node-{number}",
                "containers": [{"name": "agent", "image": "leasehold"}],
                "tolerations": [{"operator": "Exists"}],
            },
        }
        for kind, item in (("Node", node), ("Pod", pod)):
            whole = {"apiVersion": "v1", "kind": kind, **item}
            self.kubectl("create", "--validate=false", "-f", "-", given=whole)
        self.says(number, ready=False)

    def says(self, number: int, *, ready: bool) -> None:
        """What the pod's kubelet would say."""
        condition = {"type": "Ready", "status": "True" if ready else "False"}
        status = {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}],
                  "conditions": [condition]}  # fmt: skip
        self.kubectl(
            "patch", "pod", f"agent-{number}", "--subresource=status", "--type=merge",
            "-p", json.dumps({"status": status}),
        )  # fmt: skip


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Any:
    plane = ControlPlane(tmp_path_factory.mktemp("kubernetes"))
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


@asynccontextmanager
async def agent(
    plane: ControlPlane, number: int, folder: Path, origin: MemoryOrigin
) -> AsyncIterator[ImagesNode]:
    api = ApiServer("default", f"agent-{number}", LABELS, kubeconfig=str(plane.kubeconfig))
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


async def test_a_fleet_of_pods(control_plane: ControlPlane, tmp_path: Path) -> None:
    plane = control_plane
    await plane.ready()
    for number in range(3):
        await asyncio.to_thread(plane.add, number)
    origin = MemoryOrigin()
    built = build.busybox({"x": b"y" * 300_000})
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
        said = json.loads(plane.kubectl("get", "pod", "agent-1", "-o", "json").stdout)
        assert said["metadata"]["annotations"][PEER_ID] == str(nodes[1].keys.peer_id)
        for number in range(3):
            await asyncio.to_thread(plane.says, number, ready=True)
        await until(lambda: all(len(node.members.view) == 3 for node in nodes))
        assert nodes[0].members.view.members["node-1"].zone == "zone-1"

        for node in nodes:
            await node.images.ensure("r.example/team/app:1")
        assert origin.bytes == built.size + len(built.manifest), "once for all three"

        # The API server dies: nobody leaves, content still moves; back again, it is followed.
        plane.api.kill()
        plane.api.wait(10)
        await asyncio.sleep(2)
        assert all(len(node.members.view) == 3 for node in nodes)
        plane.start_api()
        await plane.ready()
        await asyncio.to_thread(plane.says, 2, ready=False)
        await until(lambda: all("node-2" not in node.members.view.members for node in nodes))
        assert "node-2" in nodes[0].members.known.members
        await asyncio.to_thread(
            plane.kubectl, "delete", "pod", "agent-2", "--force", "--grace-period=0"
        )
        await until(lambda: "node-2" not in nodes[0].members.known.members)
