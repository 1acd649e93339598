"""``leasehold up`` on a cluster: an order becomes pods, they outlive a killed provider."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest_kubernetes import Place, eventually

from leasehold.app.accounts import Accounts
from leasehold.app.tenant import Tenant
from leasehold.deploy.workload import lease_name
from leasehold.model import sdl
from leasehold.model.market import LeaseId

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(180)]

SETTINGS = """
[market]
port = 0
[dispatch]
manager_port = 0
worker_port = 0
[schedule]
port = 0
[gateway]
port = 0
[ops]
port = 0
[deploy]
driver = "kubernetes"
[deploy.kubernetes]
kubeconfig = {kubeconfig}
runtime_class = ""
unready_seconds = 1
"""

SDL = """
version: "2.0"
services:
  web:
    image: ok:1
    expose:
      - port: 8080
        as: 80
        accept: [hello.test]
        to: [{global: true}]
profiles:
  compute:
    web:
      resources:
        cpu: {units: 0.1}
        memory: {size: 16Mi}
        storage: {size: 16Mi}
  placement:
    here:
      pricing:
        web: {denom: uakt, amount: 1000}
deployment:
  web:
    here: {profile: web, count: 2}
"""


UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
"""As in the chart's pod: on a cluster the provider needs no right on its machine."""


class Up:
    """``leasehold up`` as a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: dict[str, Any] = {}

    async def start(self) -> None:
        with (self.folder / "up.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *UNPRIVILEGED, sys.executable, "-m", "leasehold", "up", "--state", str(self.folder),
                "--enable-system-services", "none",
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        await eventually(self._ready, 60)

    def _ready(self) -> bool:
        if self.process.returncode is not None:
            raise AssertionError((self.folder / "up.log").read_text()[-3000:])
        try:
            self.said = json.loads((self.folder / "run.json").read_text())
        except (OSError, ValueError):
            return False
        return bool(self.said["pid"] == self.process.pid)

    async def end(self, how: int) -> None:
        if self.process.returncode is None:
            os.kill(self.process.pid, how)
            await self.process.wait()

    async def operator(self, method: str, path: str, body: Any = None) -> Any:
        token = (self.folder / "operator.token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(timeout=30.0, trust_env=False) as http:
            url = self.said["gateway"] + path
            answer = await http.request(method, url, json=body, headers=headers)
        assert not answer.is_error, answer.text
        return answer.json()


async def test_an_order_becomes_pods(cluster: Place, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    kubeconfig = json.dumps(str(cluster.plane.kubeconfig("admin")))
    (folder / "leasehold.toml").write_text(SETTINGS.format(kubeconfig=kubeconfig))
    up = Up(folder)
    await up.start()
    try:
        await _live(cluster, up, tmp_path)
    finally:
        await up.end(signal.SIGKILL)


async def _live(cluster: Place, up: Up, tmp_path: Path) -> None:
    key = Accounts(tmp_path / "home").new("tenant")
    await up.operator("POST", "/v1/market/gifts", {"to": key.address, "amount": "500000000"})
    async with Tenant(key, up.said["ledger"]) as tenant:
        (deployed,) = await tenant.deploy(sdl.load(SDL))
    assert deployed.state == "healthy", deployed
    assert deployed.uris == ["http://hello.test"]
    lease = LeaseId.parse(deployed.lease)
    namespace = lease_name(lease)
    started = list(cluster.kubelet.started)
    assert len(started) == 2

    # The provider is killed, and comes back to what it left.
    await up.end(signal.SIGKILL)
    await up.start()

    async def healthy() -> bool:
        found = await up.operator("GET", "/v1/workloads")
        return bool(found and found[0]["healthy"])

    await eventually(healthy, 30)
    assert cluster.kubelet.started == started, "nothing was restarted"

    async def offered() -> bool:
        nodes = (await up.operator("GET", "/v1/inventory"))["nodes"]
        mine = [n["offered"]["cpu"] for n in nodes if n["name"] in cluster.kubelet.nodes]
        return mine == [8000]

    await eventually(offered)
    async with Tenant(key, up.said["ledger"]) as tenant:
        await tenant.ledger.close_deployment(lease.dseq)

    async def gone() -> bool:
        return await cluster.api.get("Namespace", namespace) is None

    await eventually(gone, 30)
