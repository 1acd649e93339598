"""Where a replica may connect to, tried from inside, with a world outside that answers.

The host is a network namespace of the test; the world is another one behind it, with a public
address, private ones and a cloud's metadata service. Everything listens everywhere.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from conftest_deploy import Machine, Provider, group, service

from leasehold.model.market import LeaseId

PUBLIC, PRIVATE, METADATA = "203.0.113.1", "10.9.9.1", "169.254.169.254"
HOST_PUBLIC, HOST_PRIVATE = "203.0.113.2", "10.9.9.2"
PORT = 8099


@contextlib.contextmanager
def _world(folder: Path) -> Iterator[None]:
    """A server in a namespace of its own, cabled to this one, and one on this host."""
    for name in ("world", "host"):
        (folder / name).mkdir()
        (folder / name / "index.html").write_text(f"{name}\n")
    serve = ["busybox", "httpd", "-f", "-p", str(PORT), "-h"]
    world = subprocess.Popen(["unshare", "-n", *serve, str(folder / "world")])
    host = subprocess.Popen([*serve, str(folder / "host")])
    try:
        _wait_for_namespace(world.pid)
        _run(f"ip link add outside type veth peer name eth0 netns {world.pid}")
        _run("ip link set outside up")
        for address in (HOST_PUBLIC, HOST_PRIVATE):
            _run(f"ip addr add {address}/24 dev outside")
        _run(f"ip route add {METADATA}/32 dev outside")
        inside = f"nsenter -t {world.pid} -n "
        _run(inside + "ip link set lo up")
        _run(inside + "ip link set eth0 up")
        for address in (f"{PUBLIC}/24", f"{PRIVATE}/24", f"{METADATA}/32"):
            _run(f"{inside}ip addr add {address} dev eth0")
        yield
    finally:
        for process in (world, host):
            process.kill()
            process.wait()


def _wait_for_namespace(pid: int) -> None:
    mine = Path("/proc/thread-self/ns/net").readlink()
    for _ in range(500):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/ns/net").readlink() != mine:
                return
        time.sleep(0.01)
    raise AssertionError("no namespace")


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True)


def test_a_replica_reaches_what_the_egress_setting_says_and_never_the_host(
    machine: Machine, own_host: Callable[..., None], tmp_path: Path
) -> None:
    found: dict[str, dict[str, str]] = {}

    async def main() -> None:
        with _world(tmp_path):
            for number, egress in enumerate(("none", "public", "all")):
                lease = LeaseId("akash1owner", 400 + number, 1, 1, "akash1provider")
                async with machine.provider(uplink=True, egress=egress) as provider:
                    await provider.up(group(service(hosts=[f"{egress}.localhost"])), lease=lease)
                    found[egress] = await _tried(provider, lease)
            async with machine.provider(uplink=True) as provider:
                await provider.deploy.teardown_all()

    own_host(main)
    world, out = "world", ""
    never = {"host public": out, "host private": out, "node": out, "other lease": out}
    assert found["none"] == never | {"public": out, "private": out, "metadata": out}
    assert found["public"] == never | {"public": world, "private": out, "metadata": out}
    assert found["all"] == never | {"public": world, "private": world, "metadata": world}


async def _tried(provider: Provider, lease: LeaseId) -> dict[str, str]:
    others = [r for r in await provider.deploy.runtime.replicas() if r.lease != lease]
    targets = {
        "public": f"{PUBLIC}:{PORT}",
        "private": f"{PRIVATE}:{PORT}",
        "metadata": f"{METADATA}:{PORT}",
        "host public": f"{HOST_PUBLIC}:{PORT}",
        "host private": f"{HOST_PRIVATE}:{PORT}",
        "node": f"169.254.1.1:{PORT}",
        "other lease": f"{others[0].address}:80" if others else "127.0.0.2:81",
    }
    # All at once: what is dropped takes its whole time.
    ask = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {} {} 2>/dev/null | tail -n 1 > /tmp/{}"
    script = "".join(
        f"({ask.format(*target.split(':'), n)}) & " for n, target in enumerate(targets.values())
    )
    await provider.run(f"rm -f /tmp/*; {script} wait", lease=lease)
    said = {}
    for n, name in enumerate(targets):
        said[name] = (await provider.run(f"cat /tmp/{n} 2>/dev/null || true", lease=lease)).strip()
    return said
