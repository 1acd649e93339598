"""A whole provider with packages from every source, shared by the tests that ask it things."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from leasehold.app import debris
from leasehold.app.demo.image import build
from leasehold.cli.client import operator
from leasehold.node.cgroups import key_of

EXAMPLES = Path(__file__).parents[3] / "examples" / "packages"
GONE_WAIT = 10.0
UP_WAIT = 60.0

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
cgroup_parent = "/{mark}"
ingress_ports = [0]
[node]
packages_dir = "{examples}"
images = ["{package}"]
[node.packages.hello]
greeting = "good morning"
period_sec = 3600
[node.packages.boxed]
word = "boxed"
[system_services.decider]
decider_period_sec = 1
"""

PACKAGE = """
name = "boxed"
version = "2.0.0"
after = ["hello"]
[config]
word = "unset"
[[service]]
name = "boxed"
run = ["{python}", "-S", "{app}/service.py"]
files = ["service.py"]
[[service]]
name = "crate"
image = "IMAGE"
run = ["/bin/sh", "-c", "echo crate is up; while :; do sleep 1; done"]
ready = "started"
limits = { memory_mb = 32, pids = 8 }
"""

SERVICE = """
from leasehold.node.sdk import Service
service = Service()
@service.function
def word(): return service.config["word"]
service.serve()
"""


class RunningRegistry(Protocol):
    @property
    def host(self) -> str: ...


@dataclass(frozen=True)
class Live:
    """A provider run by ``leasehold up`` from ``state``."""

    state: Path
    package: str

    def get(self, path: str) -> Any:
        with operator(self.state) as api:
            return api.get(path)


def oci_layout(folder: Path, layers: Sequence[Mapping[str, bytes]]) -> None:
    """Write an OCI image layout whose layers have these files."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        kind = f"application/vnd.oci.image.{kind}"
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    tars = []
    for files in layers:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        tars.append(out.getvalue())
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars],
        },
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "config.v1+json"),
        "layers": [put(gzip.compress(tar, mtime=0), "layer.v1.tar+gzip") for tar in tars],
    }
    entry = put(json.dumps(manifest).encode(), "manifest.v1+json")
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def push(layout: Path, host: str, name: str) -> str:
    """Copy ``layout`` to a registry; the reference by digest."""
    subprocess.run(
        [
            *("skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"),
            *(f"oci:{layout}", f"docker://{host}/{name}:1"),
        ],
        check=True,
    )
    [entry] = json.loads((layout / "index.json").read_text())["manifests"]
    return f"{host}/{name}@{entry['digest']}"


@pytest.fixture(scope="session")
def pushed() -> Callable[[Path, str, str], str]:
    """Push an OCI layout (a folder) to a registry (its host) under a name."""
    return push


@pytest.fixture(scope="session")
def live(registry: RunningRegistry) -> Iterator[Live]:
    """One ``leasehold up`` for all tests; at the end nothing of it may be left."""
    state = Path(tempfile.mkdtemp(prefix="node-live-"))
    mark = state.name.lower().replace("_", "-")
    build(state / "image")
    image = push(state / "image", registry.host, "node/crate")
    text = PACKAGE.replace("IMAGE", image)
    oci_layout(
        state / "package",
        [
            {"package.toml": b"never seen: hidden by the layer above", "service.py": b"1 / 0"},
            {"package.toml": text.encode()},
            {"service.py": SERVICE.encode()},
        ],
    )
    package = push(state / "package", registry.host, "node/boxed")
    (state / "leasehold.toml").write_text(
        SETTINGS.format(mark=mark, examples=EXAMPLES, package=package)
    )
    with (state / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "leasehold", "up", "--state", str(state)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        found = Live(state, package)
        _wait(state, process, lambda: found.get("/v1/node/status")["ready"])
        yield found
        with operator(state) as api:
            removed = api.post("/v1/node/clear")["removed"]
        assert "6 services of the node" in removed, removed
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        # What was killed may take a moment to be gone from /proc on a busy machine.
        end = time.monotonic() + GONE_WAIT
        while (left := debris.find(state, mark=mark) + _groups(state / "node")) and (
            time.monotonic() < end
        ):
            time.sleep(0.05)
        shutil.rmtree(state)
    assert not left, left


def _groups(root: Path) -> list[str]:
    """Control groups of the node in ``root``, and what runs in them."""
    key = key_of(str(root))
    inside = [p for p in Path("/proc").glob("[0-9]*/cgroup") if key in _text(p)]
    return [str(path) for path in (*Path("/sys/fs/cgroup").rglob(key), *inside)]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _wait(state: Path, process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    end = time.monotonic() + UP_WAIT
    while time.monotonic() < end and process.poll() is None:
        if (state / "run.json").exists() and ready():
            return
        time.sleep(0.05)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError((state / "log").read_text()[-4000:])
