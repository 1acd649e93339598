"""What goes wrong for newcomers: each has one clear error, changes nothing and leaves nothing."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from leasehold.app.demo.registry import PORT
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.market.accounts import Key, sign_token
from leasehold.market.client import LedgerClient
from leasehold.model import sdl
from leasehold.model.manifest import canonical

FREE_PORTS = """
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
"""

HELLO = Path(__file__).resolve().parents[2] / "examples" / "hello" / "deploy.yaml"


@pytest.fixture
def hello(live: Any, tmp_path: Path) -> Callable[..., Path]:
    """The example with words replaced, in a file."""

    def write(**replaced: str) -> Path:
        text = HELLO.read_text().replace(f"localhost:{PORT}", registry(live))
        for old, new in replaced.items():
            old = {"image": "leasehold/hello:1", "host": "hello.localhost"}.get(old, old)
            assert old in text
            text = text.replace(old, new)
        file = tmp_path / "deploy.yaml"
        file.write_text(text)
        return file

    return write


@pytest.fixture(autouse=True)
def goes_on_serving(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test did: the provider serves, the workload answers, nothing new is left."""
    if "live" not in request.fixturenames:
        yield
        return
    live = request.getfixturevalue("live")
    before = [lease["lease"] for lease in leases(live) if lease["state"] != "closed"]
    yield
    after = [lease["lease"] for lease in leases(live) if lease["state"] != "closed"]
    assert after == before
    answer = httpx.get(live.url, headers={"Host": "hello.localhost"}, trust_env=False)
    assert answer.text.strip() == "hello from your lease, start number 1"


def registry(live: Any) -> str:
    return next(line.split()[-1] for line in live.said if "registry started" in line)


def leases(live: Any) -> list[dict[str, Any]]:
    said = live.leasehold("lease", "ls", "--json")
    assert said.code == 0, said
    return list(said.json)


def deployments(live: Any) -> int:
    return len(live.leasehold("deployment", "ls", "--json").json)


def put_manifest(live: Any, dseq: int, manifest: bytes) -> httpx.Response:
    key = Key.load(live.folder / "home" / "accounts" / "demo.json")
    return httpx.put(
        f"{live.running()['gateway']}/deployment/{dseq}/manifest",
        content=manifest,
        headers={
            "Authorization": f"Bearer {sign_token(key, time.time())}",
            "Content-Type": "application/json",
            "Accept": "application/json",
        },
        trust_env=False,
        timeout=20.0,
    )


# -- files ------------------------------------------------------------------------------------


def test_broken_yaml_is_named_with_its_line(live: Any, tmp_path: Path):
    before = deployments(live)
    file = tmp_path / "deploy.yaml"
    file.write_text("version: '2.0'\nservices:\n  web: [unclosed\nprofiles: {}\n")
    said = live.leasehold("deploy", str(file), "--json")
    assert said.code != 0
    error = said.json["error"]
    assert error["code"] == "yaml_syntax", error
    assert error["violations"][0]["line"] == 4, error
    assert deployments(live) == before


def test_unknown_keys_are_all_named_at_once(live: Any, hello: Callable[..., Path]):
    before = deployments(live)
    file = hello(
        **{"    image:": "    imagee: x\n    image:", "    env:": "    envv: []\n    env:"}
    )
    said = live.leasehold("deploy", str(file), "--json")
    assert said.code != 0
    text = json.dumps(said.json["error"])
    assert "imagee" in text
    assert "envv" in text
    assert deployments(live) == before


def test_a_file_that_is_not_there(live: Any, tmp_path: Path):
    said = live.leasehold("deploy", str(tmp_path / "none.yaml"))
    assert said.code != 0
    assert "cannot read" in said.err
    assert "Traceback" not in said.err


# -- pipes ------------------------------------------------------------------------------------


def test_whoever_stops_reading_hurts_nobody(live: Any):
    """`| head` ends a command quietly; a peer that hangs up must not end the provider."""
    shell = f"{sys.executable} -m leasehold config show --json | head --bytes 1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert done.stdout == "{" or done.stdout == "["
    assert done.stderr == ""
    status = Path(f"/proc/{live.running()['pid']}/status").read_text()
    ignored = int(next(x for x in status.splitlines() if x.startswith("SigIgn")).split()[1], 16)
    assert ignored & 1 << (signal.SIGPIPE - 1)


# -- manifests --------------------------------------------------------------------------------


def test_a_manifest_of_another_hash_is_refused(live: Any, hello: Callable[..., Path]):
    other = sdl.load(hello(**{"hello from your lease": "something else"}).read_text())
    response = put_manifest(live, 1, canonical(other.manifest()))
    assert response.status_code == 422, response.text
    error = response.json()
    assert error["code"] == "manifest_version", error
    assert error["got"] == other.hash.hex(), error
    assert error["expected"] != error["got"], error


def test_a_manifest_for_a_lease_one_does_not_hold(live: Any, hello: Callable[..., Path]):
    response = put_manifest(live, 4711, canonical(sdl.load(hello().read_text()).manifest()))
    assert response.status_code == 404, response.text
    assert response.json()["code"] == "deployment_not_found"


# -- images -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("{registry}/leasehold/none:1", "leasehold/none:1 does not exist in its registry"),
        ("localhost:1/leasehold/hello:1", "localhost:1"),
    ],
    ids=["image missing", "registry down"],
)
def test_an_image_that_cannot_be_had(
    live: Any, hello: Callable[..., Path], reference: str, why: str
):
    file = hello(image="IMAGE", host="other.localhost", **{f"{registry(live)}/IMAGE": "IMAGE"})
    file.write_text(file.read_text().replace("IMAGE", reference.format(registry=registry(live))))
    said = live.leasehold("deploy", str(file), "--json")
    assert said.code != 0
    error = json.loads(said.out.splitlines()[-1])["error"]
    assert why in error["message"], error
    lease = next(x for x in leases(live) if x["state"] == "failed")
    explained = live.leasehold("lease", "explain", lease["lease"])
    closed = live.leasehold("lease", "close", lease["lease"], "--yes")
    assert why in explained.out + explained.err, explained
    assert closed.code == 0, closed
    until(lambda: all(x["lease"] != lease["lease"] for x in leases(live)), "closed")


# -- machines ---------------------------------------------------------------------------------


def up(state: Path, *before: str, timeout: float = 40.0, **environment: str) -> Any:
    return subprocess.run(
        [*before, sys.executable, "-m", "leasehold", "up", "--state", str(state)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | environment,
        check=False,
    )


def test_a_port_in_use_is_named_with_how_to_choose_another(roomy: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (roomy / "leasehold.toml").write_text(f"[market]\nport = {port}\n")
        done = up(roomy)
    assert done.returncode not in (0, 1), done.stderr
    assert f"{port}" in done.stderr
    assert "market.port" in done.stderr
    assert "Traceback" not in done.stderr
    assert {f.name for f in roomy.iterdir()}.isdisjoint({"run.json", "keeper.sock"})


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give it up")
def test_without_root_it_says_what_root_is_for(roomy: Path):
    roomy.chmod(0o777)
    done = up(
        roomy / "state",
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        HOME=str(roomy),
    )
    assert done.returncode not in (0, 1), done.stderr
    assert "running as uid 65534" in done.stderr
    assert "run as root" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to hide programs")
def test_without_a_container_runtime_it_says_which_to_install(roomy: Path):
    programs = [found for name in ("crun", "runc", "runsc") if (found := shutil.which(name))]
    assert programs
    hide = "".join(f"mount --bind /dev/null {os.path.realpath(found)}; " for found in programs)
    done = up(roomy / "state", "unshare", "--mount", "sh", "-c", f'{hide} exec "$@"', "sh")
    assert done.returncode not in (0, 1), done.stderr
    assert "crun" in done.stderr
    assert "apt-get install crun" in done.stderr
    assert "Traceback" not in done.stderr


# -- a full disk ------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_full_disk_refuses_what_it_cannot_keep_and_goes_on(roomy: Path):
    """Orders are refused while nothing can be written, and taken again when there is room."""
    disk = roomy / "disk"
    disk.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m,mode=711", "leasehold", str(disk)], check=True
    )
    try:
        _on_a_small_disk(roomy, disk)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _on_a_small_disk(roomy: Path, disk: Path) -> None:
    state = disk / "provider"
    state.mkdir()
    (state / "leasehold.toml").write_text(FREE_PORTS)
    environment = os.environ | {
        "LEASEHOLD_STATE": str(state),
        "LEASEHOLD_HOME": str(roomy / "home"),
    }
    with (roomy / "provider.log").open("wb") as log:
        provider = subprocess.Popen(
            [sys.executable, "-m", "leasehold", "up"], stdout=log, stderr=log, env=environment
        )
    try:
        until(lambda: (state / "run.json").exists(), "ready")

        def leasehold(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "leasehold", *words],
                capture_output=True,
                text=True,
                timeout=60,
                env=environment,
                check=False,
            )

        assert leasehold("account", "new", "acme").returncode == 0
        file = roomy / "deploy.yaml"
        file.write_text(HELLO.read_text())
        stuffing = disk / "stuffing"
        with stuffing.open("wb", buffering=0) as out, pytest.raises(OSError, match="No space left"):
            while True:
                out.write(b"x" * 4096)
        taken = asyncio.run(order_until_refused(roomy, state))
        assert provider.poll() is None
        stuffing.unlink()
        until(
            lambda: leasehold("deployment", "create", str(file)).returncode == 0,
            "an order is taken again",
        )
        listed = json.loads(leasehold("deployment", "ls", "--json").stdout)
        # The refused one was told to try again; it may have landed when there was room.
        assert len(listed) in (taken + 1, taken + 2)
        assert provider.poll() is None
    except BaseException:
        print(provider.poll(), (roomy / "provider.log").read_text())
        raise
    finally:
        token = (state / "operator.token").read_text().strip()
        gateway = json.loads((state / "run.json").read_text())["gateway"]
        httpx.post(
            f"{gateway}/v1/node/clear",
            headers={"Authorization": f"Bearer {token}"},
            timeout=60.0,
            trust_env=False,
        )
        provider.terminate()
        provider.wait(timeout=30)


async def order_until_refused(roomy: Path, state: Path) -> int:
    """Order until there is no room left for the market's log; how many were acknowledged."""
    key = Key.load(roomy / "home" / "accounts" / "acme.json")
    loaded = sdl.load(HELLO.read_text())
    ledger = json.loads((state / "run.json").read_text())["ledger"]
    async with LedgerClient(ledger, key, timeout=5.0) as client:
        for taken in range(900):
            try:
                await client.create_deployment(loaded.groups(), loaded.hash, "500000")
            except LeaseholdError as error:
                if error.kind not in (Kind.UNAVAILABLE, Kind.INTERNAL):
                    raise
                return taken
    raise AssertionError("a full disk took 900 orders")


def until(true: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
