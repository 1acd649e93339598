"""What every test may use."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from leasehold.core.clock import VirtualClock

# As in a provider: gRPC's handlers would start threads in every child that is forked, and a process
# with threads gets no user namespace. Read when gRPC is first imported.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

# An example that hangs must fail; one that is slow because the machine is busy must not.
hypothesis.settings.register_profile("leasehold", deadline=5000)
hypothesis.settings.load_profile("leasehold")


@pytest.fixture
def virtual() -> VirtualClock:
    """Virtual time: ``virtual.run(main)`` runs a coroutine function in it."""
    return VirtualClock()


@dataclass(frozen=True)
class Registry:
    """A running docker-registry: ``host`` is ``127.0.0.1:port``; ``logs`` is its output."""

    host: str
    root: Path
    logs: Path

    @property
    def blobs(self) -> Path:
        return self.root / "docker/registry/v2/blobs/sha256"


def start_registry(folder: Path, *, extra: str = "") -> tuple[subprocess.Popen[bytes], Registry]:
    """Start Debian's docker-registry on a free port; ``extra`` is YAML appended to its config."""
    program = shutil.which("docker-registry")
    assert program is not None, "docker-registry is not installed (scripts/packages.txt)"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "registry.yml"
    config.write_text(
        "version: 0.1\nlog: {level: info}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}},"
        " delete: {enabled: true}}\n"
        f"http: {{addr: '127.0.0.1:{port}', secret: only-for-tests}}\n{extra}"
    )
    log = folder / "registry.log"
    with log.open("wb") as output:
        process = subprocess.Popen([program, "serve", str(config)], stdout=output, stderr=output)
    deadline = time.monotonic() + 20
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=1)
            break
        except urllib.error.HTTPError:
            break
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise RuntimeError(f"docker-registry: {log.read_text()[-2000:]}") from None
            time.sleep(0.02)
    return process, Registry(f"127.0.0.1:{port}", folder / "data", log)


@pytest.fixture(scope="session")
def registry_starter() -> Callable[..., tuple[subprocess.Popen[bytes], Registry]]:
    """``start_registry``, for fixtures that need one with a configuration of its own."""
    return start_registry


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A docker-registry shared by the tests of a session: push under names of your own."""
    process, found = start_registry(tmp_path_factory.mktemp("registry"))
    yield found
    process.terminate()
    process.wait(10)


@pytest.fixture
def own_registry(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Registry]]:
    """A docker-registry of the test's own, to stop, break or read the log of."""
    process, found = start_registry(tmp_path / "registry")
    yield process, found
    process.kill()
    process.wait(10)
