"""Two providers: an image leaves its registry once for both, and they compete on one market."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from leasehold.app.demo.flow import _free_port
from leasehold.app.demo.registry import PORT

HELLO = Path(__file__).resolve().parents[2] / "examples" / "hello" / "deploy.yaml"

SETTINGS = """
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
ingress_ports = [0]
"""

MARKET = """
[market]
port = 0
"""

FLEET = """
[images]
fleet = true
node_name = "{name}"
seeds = {seeds}
mirror_port = 0
transfer_port = {transfer}
[p2p]
listen = ["/ip4/127.0.0.1/tcp/{p2p}"]
announce = ["/ip4/127.0.0.1/tcp/{p2p}"]
"""


class Provider:
    """``leasehold up`` in a folder of its own, and its commands."""

    def __init__(self, folder: Path, name: str, settings: str, p2p: int = 0) -> None:
        self.state = folder / name
        self.state.mkdir(mode=0o711)
        self.home = folder / f"{name}-home"
        self.p2p = p2p
        (self.state / "leasehold.toml").write_text(SETTINGS + settings)
        self.log = folder / f"{name}.log"
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "leasehold", "up", "--state", str(self.state)],
                stdout=log,
                stderr=log,
            )
        until(lambda: self.run.get("pid") == self.process.pid, self.log)

    @property
    def run(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.state / "run.json").read_text()))
        except FileNotFoundError:
            return {}

    def leasehold(self, *words: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "leasehold", *words, "--json"],
            capture_output=True,
            text=True,
            timeout=100,
            env=os.environ | {"LEASEHOLD_STATE": str(self.state), "LEASEHOLD_HOME": str(self.home)},
            check=False,
        )
        assert done.returncode == 0, (done.stdout, done.stderr, self.log.read_text())
        return json.loads(done.stdout)

    @property
    def seed(self) -> str:
        peer = self.leasehold("images", "identity")["peer_id"]
        return f"/ip4/127.0.0.1/tcp/{self.p2p}/p2p/{peer}"

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.run['ops']}/metrics", trust_env=False).text
        return sum(float(v) for v in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M))

    def end(self) -> None:
        token = (self.state / "operator.token").read_text().strip()
        httpx.post(
            f"{self.run['gateway']}/v1/node/clear",
            headers={"Authorization": f"Bearer {token}"},
            timeout=60.0,
            trust_env=False,
        )
        self.process.terminate()
        self.process.wait(timeout=60)


def until(true: Callable[[], bool], log: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@contextmanager
def provider(folder: Path, name: str, settings: str, p2p: int = 0) -> Iterator[Provider]:
    made = Provider(folder, name, settings, p2p)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def fleet(roomy: Path) -> Iterator[list[Provider]]:
    with ExitStack() as stack:

        def member(name: str, seeds: list[str]) -> Provider:
            p2p = _free_port()
            settings = MARKET + FLEET.format(
                name=name, seeds=json.dumps(seeds), transfer=_free_port(), p2p=p2p
            )
            return stack.enter_context(provider(roomy, name, settings, p2p))

        first = member("one", [])
        second = member("two", [first.seed])
        for each in (first, second):
            until(lambda each=each: each.metric("leasehold_images_members") == 2, each.log)
        yield [first, second]


def hello(live: Any, folder: Path) -> tuple[str, Path]:
    """The demo's registry, and the example that pulls from it."""
    registry = next(line.split()[-1] for line in live.said if "registry started" in line)
    file = folder / "deploy.yaml"
    file.write_text(HELLO.read_text().replace(f"localhost:{PORT}", registry))
    return registry, file


@pytest.mark.timeout(240)
def test_an_image_leaves_its_registry_once_for_two_providers(
    live: Any, fleet: list[Provider], roomy: Path
):
    registry, file = hello(live, roomy)
    for each in fleet:
        each.leasehold("account", "new", "acme")
        (deployed,) = each.leasehold("deploy", str(file))
        assert deployed["state"] == "healthy"
    origin = [each.metric("leasehold_images_origin_bytes_total") for each in fleet]
    layers = httpx.get(
        f"http://{registry}/v2/leasehold/hello/manifests/1",
        headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
        trust_env=False,
    )
    size = sum(part["size"] for part in [*layers.json()["layers"], layers.json()["config"]])
    # Manifests are small and asked of the registry by tag; layers and config travel once.
    assert size <= sum(origin) < size + 10_000, origin


@pytest.mark.timeout(240)
def test_the_cheaper_of_two_providers_on_one_market_gets_the_lease(live: Any, roomy: Path):
    """It keeps it while the market is away, over a restart of its own, and takes news up again."""
    _, file = hello(live, roomy)
    rpc = f"127.0.0.1:{_free_port()}"
    own = f'[market]\nport = {rpc.rpartition(":")[2]}\nprice_cpu = "0.2"\n'
    theirs = f'[market]\nrpc = "http://{rpc}"\nprice_cpu = "0.1"\n'
    with provider(roomy, "market", own) as first, provider(roomy, "guest", theirs) as second:
        assert second.run["ledger"] == f"http://{rpc}"
        first.leasehold("account", "new", "acme")
        first.leasehold("account", "send", second.run["provider"], "10000000")
        until(lambda: len(first.leasehold("provider", "ls")) == 2, second.log)
        (deployed,) = first.leasehold("deploy", str(file))
        assert deployed["lease"].endswith(second.run["provider"])
        assert deployed["state"] == "healthy"

        def says() -> str:
            ingress = second.run["ingress"]
            answer = httpx.get(ingress, headers={"host": "hello.localhost"}, trust_env=False)
            return answer.text if answer.status_code == 200 else ""

        assert "start number 1" in says()
        first.process.kill()
        first.process.wait()
        second.process.terminate()
        second.process.wait(timeout=60)
        second.start()
        assert "start number 1" in says(), "adopted without a market"
        first.start()
        first.leasehold("lease", "close", "hello", "--yes")
        until(lambda: not says(), second.log)
