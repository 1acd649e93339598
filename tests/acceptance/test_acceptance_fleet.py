"""Two providers that know of each other: an image leaves its registry once for both."""

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
ingress_ports = [0]
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

    def __init__(self, folder: Path, name: str, seeds: list[str]) -> None:
        self.state = folder / name
        self.state.mkdir(mode=0o711)
        self.home = folder / f"{name}-home"
        self.p2p = _free_port()
        (self.state / "leasehold.toml").write_text(
            SETTINGS.format(name=name, seeds=json.dumps(seeds), transfer=_free_port(), p2p=self.p2p)
        )
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "leasehold", "up", "--state", str(self.state)],
                stdout=log,
                stderr=log,
            )
        until((self.state / "run.json").exists, self.log)

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
        ops = json.loads((self.state / "run.json").read_text())["ops"]
        text = httpx.get(f"{ops}/metrics", trust_env=False).text
        return sum(float(v) for v in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M))

    def end(self) -> None:
        run = json.loads((self.state / "run.json").read_text())
        token = (self.state / "operator.token").read_text().strip()
        httpx.post(
            f"{run['gateway']}/v1/node/clear",
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


@pytest.fixture
def providers(roomy: Path) -> Iterator[list[Provider]]:
    with ExitStack() as stack:

        @contextmanager
        def provider(name: str, seeds: list[str]) -> Iterator[Provider]:
            made = Provider(roomy, name, seeds)
            yield made
            made.end()

        first = stack.enter_context(provider("one", []))
        second = stack.enter_context(provider("two", [first.seed]))
        for each in (first, second):
            until(lambda each=each: each.metric("leasehold_images_members") == 2, each.log)
        yield [first, second]


@pytest.mark.timeout(240)
def test_an_image_leaves_its_registry_once_for_two_providers(
    live: Any, providers: list[Provider], roomy: Path
):
    registry = next(line.split()[-1] for line in live.said if "registry started" in line)
    file = roomy / "deploy.yaml"
    file.write_text(HELLO.read_text().replace(f"localhost:{PORT}", registry))
    for provider in providers:
        provider.leasehold("account", "new", "acme")
        (deployed,) = provider.leasehold("deploy", str(file))
        assert deployed["state"] == "healthy"
    origin = [provider.metric("leasehold_images_origin_bytes_total") for provider in providers]
    layers = httpx.get(
        f"http://{registry}/v2/leasehold/hello/manifests/1",
        headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
        trust_env=False,
    )
    size = sum(part["size"] for part in [*layers.json()["layers"], layers.json()["config"]])
    # Manifests are small and asked of the registry by tag; layers and config travel once.
    assert size <= sum(origin) < size + 10_000, origin
