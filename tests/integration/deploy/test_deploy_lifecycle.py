"""A lease from manifest to answer to removal, on real containers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from conftest_deploy import (
    LEASE,
    MIB,
    Machine,
    Provider,
    eventually,
    group,
    http_get,
    service,
)

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.deploy.keeper.client import kill_keeper
from leasehold.deploy.workload import lease_name
from leasehold.model.events.lease import ManifestReceived
from leasehold.model.events.manifest import LeaseHostnames
from leasehold.model.events.market import LeaseWon, Price
from leasehold.model.market import LeaseId


async def test_from_manifest_to_answer_to_nothing_left(machine: Machine) -> None:
    async with machine.provider() as provider:
        await provider.up(group(service(env=["GREETING=hi"])))
        assert await provider.get() == (200, b"hello\n")
        assert (await provider.get("other.localhost"))[0] == 404
        types = [event.type for event in await provider.events()]
        assert types == [
            "manifest.received",
            "deploy.image_pulled",
            "deploy.started",
            "deploy.running",
            "deploy.healthy",
        ]
        seen = await provider.run("echo $GREETING $AKASH_OWNER $AKASH_DEPLOYMENT_SEQUENCE; id -u")
        assert seen == "hi akash1owner 100\n0\n"
        status = await provider.deploy.status(LEASE)
        assert status["healthy"] is True
        assert status["services"]["web"]["available"] == 1
        assert status["services"]["web"]["replicas"][0]["memory_bytes"] > 0
        pid = (await provider.deploy.runtime.replicas())[0].pid

        await provider.close()
        await provider.until("deploy.removed")
        assert (await provider.get())[0] == 404
        assert not os.path.exists(f"/proc/{pid}")
        await provider.deploy.teardown_all()
    _nothing_left(machine)


def _nothing_left(machine: Machine) -> None:
    folder = str(machine.folder)
    assert folder not in Path("/proc/self/mounts").read_text()
    loops = subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True)
    assert folder not in loops.stdout
    parent = machine.settings.cgroup_parent.lstrip("/")
    assert not list(Path("/sys/fs/cgroup").glob(f"*/{parent}"))
    left = {p.name for p in (machine.folder / "deploy").iterdir()}
    assert left <= {"ports.json"}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            assert folder not in (process / "cmdline").read_text(errors="replace")


@contextlib.asynccontextmanager
async def load(port: int, rate: int = 500) -> AsyncIterator[list[tuple[int, bytes]]]:
    """Requests at ``rate`` a second for as long as the block lasts; the answers are there after it.

    A process of its own asks: what it measures is the path, not this one's event loop.
    """
    answers: list[tuple[int, bytes]] = []
    script = Path(__file__).with_name("load_generator.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), str(port), "hello.localhost", str(rate),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield answers
    finally:
        out, _ = await process.communicate(b"")
    found = json.loads(out)
    print(f"{found['rate']:.0f} requests/s, the slowest answer after {found['slowest']:.3f} s")
    for status, body, count in found["answers"]:
        answers += [(status, body.encode())] * count
    assert found["rate"] > 0.95 * rate


def _version(text: str, **more: object) -> dict[str, object]:
    script = f"mkdir -p /w; echo {text} > /w/index.html; exec busybox httpd -f -p 80 -h /w"
    return group(service(script=script, **more))  # type: ignore[arg-type]


async def test_no_request_is_lost_by_updates_good_and_bad(machine: Machine) -> None:
    async with machine.provider(start_deadline=3.0) as provider:
        # Several replicas: each server lets nine connections wait, too few on a busy machine.
        await provider.up(_version("one", count=3))
        async with load(provider.deploy.ingress.port) as answers:
            await asyncio.sleep(0.3)
            await provider.put(_version("two", count=4), "h2")
            await provider.until("deploy.healthy", "h2")
            assert (await provider.get())[1] == b"two\n"
            # It starts, but never answers: the old version goes on.
            await provider.put(group(service(script="sleep 1000")), "h3")
            failed = (await provider.until("deploy.failed", "h3")).payload
            assert failed.code == "not_answering"
            # It cannot even be started.
            bad = service()
            bad["command"] = ["/no/such/program"]
            await provider.put(group(bad), "h4")
            assert (
                "no/such/program" in (await provider.until("deploy.failed", "h4")).payload.message
            )
            assert (await provider.get())[1] == b"two\n"
            # Back to the first.
            await provider.put(_version("one", count=3), "h5")
            await provider.until("deploy.healthy", "h5")
            await asyncio.sleep(0.3)
        lost = [a for a in answers if a[0] != 200]
        assert not lost, f"{len(lost)} of {len(answers)}: {lost[:3]}"
        assert len(answers) > 500
        assert {body for _, body in answers} == {b"one\n", b"two\n"}
        keys = {r.key for r in await provider.deploy.runtime.replicas()}
        assert len(keys) == 3


async def test_a_full_node_can_still_be_updated(machine: Machine) -> None:
    async with machine.provider() as provider:
        inventory = provider.deploy.inventory
        ((name, left),) = inventory.available().items()
        leased = {
            "name": "g",
            "resources": [
                {
                    "resource": {
                        "id": 1,
                        "cpu": {"units": {"val": str(left.cpu)}},
                        "memory": {"size": {"val": str(left.memory)}},
                    },
                    "count": 1,
                    "price": {"denom": "uakt", "amount": "1"},
                }
            ],
        }
        await provider.say(
            LEASE, LeaseWon(id=LEASE, group=leased, price=Price("uakt", "1"), height=1)
        )
        await provider.up(_version("one"))
        left = inventory.available()[name]
        assert (left.cpu, left.memory) == (0, 0)
        async with load(provider.deploy.ingress.port, 200) as answers:
            await provider.put(_version("two"), "h2")
            await provider.until("deploy.healthy", "h2")
        assert [a for a in answers if a[0] != 200] == []
        assert (await provider.get())[1] == b"two\n"
        left = inventory.available()[name]
        assert (left.cpu, left.memory) == (0, 0), "promised once, whatever runs side by side"


async def test_workloads_survive_the_provider_and_are_adopted(machine: Machine) -> None:
    async with machine.provider() as provider:
        await provider.up(_version("one", count=2))
        port = provider.deploy.ingress.port
        pids = {r.pid for r in await provider.deploy.runtime.replicas()}
    assert await http_get(port, "hello.localhost") == (200, b"one\n")
    asked = len(machine.images.asked)
    machine.images.broken["img"] = LeaseholdError("down", "registry down", kind=Kind.UNAVAILABLE)
    async with load(port) as answers:
        async with machine.provider() as provider:
            await eventually(lambda: provider.deploy.knows(LEASE))

            async def adopted() -> bool:
                return (await provider.deploy.status(LEASE))["running_hash"] == "h1"

            await eventually(adopted)
            assert {r.pid for r in await provider.deploy.runtime.replicas()} == pids
            assert provider.deploy.ingress.port == port
            # An adopted deployment can be updated like any other.
            machine.images.broken.clear()
            await provider.put(_version("two"), "h2")
            await provider.until("deploy.healthy", "h2")
    assert len(machine.images.asked) == asked + 1
    assert [a for a in answers if a[0] != 200] == []


async def test_a_replica_that_ends_is_started_again_with_its_exit_told(machine: Machine) -> None:
    async with machine.provider() as provider:
        await provider.up(_version("one"))
        (replica,) = await provider.deploy.runtime.replicas()
        os.kill(replica.pid, 9)
        exited = (await provider.until("deploy.exited")).payload
        assert (exited.status, exited.reason) == (9, "signal 9")

        async def answers() -> bool:
            return (await provider.get())[0] == 200

        await eventually(answers)
        (again,) = await provider.deploy.runtime.replicas()
        assert again.key == replica.key
        assert again.pid != replica.pid


async def test_the_keeper_may_be_killed(machine: Machine) -> None:
    async with machine.provider() as provider:
        await provider.up(_version("one"))
        (replica,) = await provider.deploy.runtime.replicas()
        first = provider.deploy.keeper.pid
        kill_keeper(first)
        await eventually(lambda: provider.deploy.keeper.pid != first)
        (found,) = await provider.deploy.runtime.replicas()
        assert (found.pid, found.state.value) == (replica.pid, "running")
        assert (await provider.get())[0] == 200
        # The new keeper holds the same reins: output, exec, end, exit code.
        assert await provider.run("echo alive") == "alive\n"
        await provider.run("kill -TERM 1; kill -KILL 1")
        os.kill(replica.pid, 9)
        assert (await provider.until("deploy.exited")).payload.status in (9, None)


async def test_persistent_volumes_outlive_updates(machine: Machine) -> None:
    script = "mkdir -p /w; cp /data/n /w/index.html 2>/dev/null || echo none > /w/index.html;"
    script += " echo kept > /data/n; exec busybox httpd -f -p 80 -h /w"
    volumes = [{"name": "data", "mount": "/data", "size": 16 * MIB, "persistent": True}]
    async with machine.provider() as provider:
        await provider.up(group(service(script=script, volumes=volumes)))
        assert (await provider.get())[1] == b"none\n"
        async with load(provider.deploy.ingress.port, 50) as answers:
            await provider.put(group(service(script=script, volumes=volumes, env=["V=2"])), "h2")
            await provider.until("deploy.healthy", "h2")
        assert (await provider.get())[1] == b"kept\n"
        # Two versions never write at once: requests wait for the new one instead of failing.
        assert [a for a in answers if a[0] != 200] == []
        owner = (machine.volumes.root / "akash1owner/100/web/data/n").stat()
        assert owner.st_uid == 0, "ids on the volume are those inside the container"
        await provider.close()
        await provider.until("deploy.removed")
    assert machine.volumes.released == [("akash1owner", 100)]


async def test_services_are_added_and_dropped_by_an_update(machine: Machine) -> None:
    async with machine.provider() as provider:
        await provider.up(group(service()))
        more = service("api", hosts=["api.localhost"])
        await provider.put(group(more, service()), "h2")
        await provider.until("deploy.healthy", "h2")
        untouched = [r for r in await provider.deploy.runtime.replicas() if r.service == "web"]
        assert (await provider.get("api.localhost"))[0] == 200
        await provider.put(group(more), "h3")
        await provider.until("deploy.healthy", "h3")
        assert (await provider.get("hello.localhost"))[0] == 404
        assert (await provider.get("api.localhost"))[0] == 200
        left = await provider.deploy.runtime.replicas()
        assert [r.service for r in left] == ["api"]
        assert untouched[0].key not in {r.key for r in left}


def test_node_ports_lead_in_and_the_host_is_given_back(
    machine: Machine, own_host: Callable[..., None]
) -> None:
    async def main() -> None:
        forwarding = Path("/proc/sys/net/ipv4/ip_forward")
        forwarding.write_text("0")
        exposes = [{"port": 80, "externalPort": 9000, "proto": "TCP", "global": True}]
        async with machine.provider(uplink=True) as provider:
            await provider.up(group(service(exposes=exposes)))
            (forwarded,) = (await provider.deploy.status(LEASE))["forwarded_ports"]
            assert forwarded["port"] == 80
            port = forwarded["externalPort"]
            assert await http_get(port, "x") == (200, b"hello\n")
        async with machine.provider(uplink=True) as provider:
            assert await http_get(port, "x") == (200, b"hello\n")
            await provider.until("deploy.healthy", "h1")
            await eventually(lambda: provider.deploy.knows(LEASE))
            await provider.close()
            await provider.until("deploy.removed")
            await provider.deploy.teardown_all()
        assert await asyncio.to_thread(_output, "nft", "list", "tables") == ""
        links = await asyncio.to_thread(_output, "ip", "-br", "link")
        assert [line.split()[0] for line in links.splitlines()] == ["lo"]
        assert forwarding.read_text().strip() == "0"

    own_host(main)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


async def test_what_fails_says_why_and_leaves_nothing(machine: Machine) -> None:
    machine.images.broken["gone"] = LeaseholdError(
        "image_not_found", "the registry has no such image", kind=Kind.NOT_FOUND
    )
    async with machine.provider() as provider:
        await provider.put(group(service(image="gone")), "h1")
        failed = (await provider.until("deploy.failed")).payload
        assert (failed.code, failed.final) == ("image_not_found", True)
        status = await provider.deploy.status(LEASE)
        assert status["error"]["code"] == "image_not_found"
        assert await provider.deploy.runtime.replicas() == []
        # A better manifest helps.
        await provider.put(group(service()), "h2")
        await provider.until("deploy.healthy", "h2")


def test_the_name_of_a_lease_is_the_published_one() -> None:
    assert lease_name(LEASE) == "pmkaom7p6tdd85j5m3oq4pipvc8g52uf0733jarld89q6"


async def test_a_host_name_moves_between_leases_of_one_owner(machine: Machine) -> None:
    other = LeaseId("akash1owner", 101, 1, 1, "akash1provider")
    script = "mkdir -p /w; echo second > /w/index.html; exec busybox httpd -f -p 80 -h /w"
    async with machine.provider() as provider:
        await provider.up(group(service()))
        fact = ManifestReceived(
            id=other,
            hash="h1",
            group=group(service(script=script)),
            withheld=["hello.localhost"],
        )
        await provider.say(other, fact)
        await provider.until("deploy.healthy", "h1", other)
        assert (await provider.get())[1] == b"hello\n", "withheld: accepted, not wired up"
        assert (await provider.deploy.status(other))["uris"] == []
        await provider.say(other, LeaseHostnames(id=other, hosts=["hello.localhost"]))

        async def moved() -> bool:
            return (await provider.get())[1] == b"second\n"

        await eventually(moved)
        (uri,) = (await provider.deploy.status(other))["uris"]
        assert uri.startswith("http://hello.localhost")


async def test_following_a_log_ends_with_the_lease_and_the_log_outlives_it(
    machine: Machine,
) -> None:
    script = "for i in 1 2 3; do echo line $i; sleep 0.1; done; exec busybox httpd -f -p 80 -h /tmp"
    async with machine.provider() as provider:
        seen: list[str] = []

        async def follow() -> None:
            async for line in provider.deploy.logs(LEASE, follow=True):
                seen.append(line.text)  # noqa: PERF401 (looked at while it grows)

        await provider.up(group(service(script=script)))
        following = asyncio.ensure_future(follow())
        await eventually(lambda: len(seen) == 3)
        await provider.close()
        async with asyncio.timeout(10):
            await following
        assert seen == ["line 1", "line 2", "line 3"]
        kept = [line async for line in provider.deploy.logs(LEASE, tail=2)]
        assert [(k.service, k.replica, k.stream, k.text) for k in kept] == [
            ("web", 0, "stdout", "line 2"),
            ("web", 0, "stdout", "line 3"),
        ]


async def test_pausing_holds_over_a_restart_and_draining_closes_leases(machine: Machine) -> None:
    async with machine.provider() as provider:
        await provider.up(group(service()))
        await provider.deploy.pause("back on Monday")
    async with machine.provider() as provider:
        assert provider.deploy.offered()["unavailable"] == "back on Monday"
        await provider.deploy.resume()
        assert provider.deploy.offered()["unavailable"] == ""
        await eventually(lambda: provider.deploy.knows(LEASE))
        assert await provider.deploy.drain("bye") == [str(LEASE)]
    assert machine.market.closed == [(LEASE, 10001)]


@pytest.mark.parametrize("user_namespace", [True, False])
async def test_runc_takes_the_place_of_crun(machine: Machine, user_namespace: bool) -> None:
    async with machine.provider(runtime="runc", user_namespace=user_namespace) as provider:
        await provider.up(_version("one"))
        assert await provider.get() == (200, b"one\n")
        await provider.put(_version("two"), "h2")
        await provider.until("deploy.healthy", "h2")
        assert await provider.get() == (200, b"two\n")
        if user_namespace:
            with pytest.raises(LeaseholdError, match="install crun"):
                await provider.run("true")
        else:
            assert await _terminal(provider) == ("31 97", 7)
        await provider.close()
        await provider.until("deploy.removed")
        await provider.deploy.teardown_all()
    _nothing_left(machine)


async def _terminal(provider: Provider) -> tuple[str, int]:
    """What a shell on a terminal of 97 by 31 characters says of it, and the code it ends with."""
    shell = await provider.deploy.exec(LEASE, "web", ["/bin/sh"], tty=True, stdin=True)
    try:
        await shell.resize(97, 31)
        await shell.write(b"stty size; exit 7\n")
        said = b"".join([data async for _, data in shell.output()]).decode()
        return said.replace("\r", "").strip().splitlines()[-1], await shell.wait()
    finally:
        await shell.kill()


async def test_a_terminal_knows_its_size(machine: Machine) -> None:
    async with machine.provider() as provider:
        await provider.up(_version("one"))
        assert await _terminal(provider) == ("31 97", 7)


async def test_gvisor_is_the_strong_isolation(machine: Machine) -> None:
    async with machine.provider(runtime="runsc") as provider:
        await provider.up(_version("one"))

        async def answers() -> bool:
            return await provider.get() == (200, b"one\n")

        # Its user-space network may break a first connection off after it took the probe's.
        await eventually(answers)
        kernel = await provider.run("dmesg")
        assert "gVisor" in kernel, "the kernel it sees is not this machine's"
        assert await _terminal(provider) == ("31 97", 7)
        (replica,) = (await provider.deploy.status(LEASE))["services"]["web"]["replicas"]
        assert replica["memory_bytes"] > MIB
        await provider.close()
        await provider.until("deploy.removed")
        await provider.deploy.teardown_all()
    _nothing_left(machine)


async def test_the_images_health_check_is_asked(machine: Machine) -> None:
    check = {"Test": ["CMD-SHELL", "test -e /tmp/ready"], "Timeout": 5_000_000_000}
    machine.images.configs["img"] = {"Healthcheck": check}
    async with machine.provider() as provider:
        await provider.put(_version("one"), "h1")
        await provider.until("deploy.running", "h1")
        await asyncio.sleep(0.3)
        assert [e.type for e in await provider.events()][-1] == "deploy.running"
        assert (await provider.get())[0] != 200, "nothing is let in before it says it is well"
        await provider.run("touch /tmp/ready")
        await provider.until("deploy.healthy", "h1")
        assert (await provider.get())[0] == 200
