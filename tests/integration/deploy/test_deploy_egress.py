"""Where a replica may connect to, tried from inside, with a world outside that answers.

The host is a network namespace of the test; the world is another one behind it, with a public
address, private ones and a cloud's metadata service. Everything listens everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from conftest_deploy import LEASE, Machine, Provider, group, service

from leasehold.model.market import LeaseId

PUBLIC, PRIVATE, METADATA = "203.0.113.1", "10.9.9.1", "169.254.169.254"
HOST_PUBLIC, HOST_PRIVATE = "203.0.113.2", "10.9.9.2"
PORT = 8099


@contextlib.contextmanager
def _world(folder: Path) -> Iterator[int]:
    """A server in a namespace of its own, cabled to this one, and one on this host.

    Yields the first's process id."""
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
        yield world.pid
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


LEASED = ("203.0.113.50", "203.0.113.51")


def _leased_service(name: str, text: str, outside: int) -> dict[str, object]:
    script = f"mkdir -p /w; echo {text} > /w/index.html; exec busybox httpd -f -p 80 -h /w"
    exposes = [
        {"port": 80, "externalPort": outside, "proto": "TCP", "global": True, "ip": "mine",
         "endpointSequenceNumber": 1}
    ]  # fmt: skip
    return service(name, script, exposes=exposes)


def test_a_leased_address_leads_to_its_lease_and_stays_its_own(
    machine: Machine, own_host: Callable[..., None], tmp_path: Path
) -> None:
    other = LeaseId("akash1other", 500, 1, 1, "akash1provider")
    third = LeaseId("akash1other", 501, 1, 1, "akash1provider")
    fourth = LeaseId("akash1other", 502, 1, 1, "akash1provider")

    async def main() -> None:
        with _world(tmp_path) as world:
            for address in LEASED:
                _run(f"ip addr add {address}/32 dev outside")

            async def ask(address: str, port: int) -> str:
                """From the world outside, which only knows the addresses."""
                process = await asyncio.create_subprocess_exec(
                    "nsenter", "-t", str(world), "-n", "busybox", "nc", "-w", "2", address,
                    str(port), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL,
                )  # fmt: skip
                out, _ = await process.communicate(b"GET / HTTP/1.0\r\n\r\n")
                return out.decode().strip().rpartition("\n")[2]

            offered = {"uplink": True, "leased_ips": LEASED}
            async with machine.provider(**offered) as provider:
                web, api = _leased_service("web", "one", 8000), _leased_service("api", "two", 443)
                await provider.up(group(api, web))
                await provider.up(group(_leased_service("web", "other", 8000)), lease=other)
                status = await provider.deploy.status(LEASE)
                assert status["ips"]["web"] == [
                    {"Port": 80, "ExternalPort": 8000, "Protocol": "TCP", "IP": LEASED[0]}
                ]
                assert await ask(LEASED[0], 8000) == "one"
                assert await ask(LEASED[0], 443) == "two"
                assert await ask(LEASED[1], 8000) == "other"
                assert await ask(HOST_PUBLIC, 8000) == "", "no port of the host"
                await provider.put(group(_leased_service("web", "third", 1)), "h1", third)
                failed = (await provider.until("deploy.failed", "h1", third)).payload
                assert (failed.code, failed.final) == ("no_leased_ip", False)
            async with machine.provider(**offered) as provider:
                assert await ask(LEASED[0], 8000) == "one", "it outlives the provider"
                await provider.put(group(_leased_service("web", "new", 8000)), "h2")
                await provider.until("deploy.healthy", "h2")
                assert await ask(LEASED[0], 8000) == "new"
                assert await ask(LEASED[0], 443) == ""
                await provider.close(other)
                await provider.until("deploy.removed", lease=other)
                await provider.until("deploy.healthy", "h1", third)
                assert await ask(LEASED[1], 1) == "third", "given on to who waited"
                await provider.close()
                await provider.until("deploy.removed")
                await provider.up(group(_leased_service("web", "fourth", 1)), lease=fourth)
                assert await ask(LEASED[0], 1) == "fourth"
                assert provider.deploy.addresses is not None
                assert await provider.deploy.addresses.transfer(fourth, ["mine"]) == ["mine"]
                assert (await ask(LEASED[1], 1), await ask(LEASED[0], 1)) == ("fourth", "third")
            async with machine.provider(**offered) as provider:
                status = await provider.deploy.status(fourth)
                assert status["ips"]["web"][0]["IP"] == LEASED[1], "it stays moved"
                assert await ask(LEASED[1], 1) == "fourth"
                await provider.deploy.teardown_all()

    own_host(main)
