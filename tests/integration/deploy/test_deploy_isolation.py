"""What a tenant's container must not be able to do, tried from inside."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from typing import Any

import pytest
from conftest_deploy import LEASE, MIB, FakeImage, Machine, Provider, group, service

from leasehold.deploy.oci import cgroups
from leasehold.model.market import LeaseId

OTHER = LeaseId("akash1other", 200, 1, 1, "akash1provider")


async def test_it_sees_nothing_of_the_host(machine: Machine) -> None:
    async with machine.provider() as provider:
        await provider.up(group(service()))
        processes = await provider.run("ps -o pid,comm | grep -v ' ps\\| grep\\| sh'")
        assert "httpd" in processes or "busybox" in processes
        assert "python" not in processes
        mounts = await provider.run("cat /proc/self/mounts")
        assert str(machine.folder) not in mounts
        assert await provider.run("ls /sys/class /sys/kernel 2>&1 | grep -c 'No such'") == "2\n"
        assert (await provider.run("ls /root /home /srv 2>&1")).count("No such file") == 3
        assert "lo" in (links := await provider.run("ip -o link"))
        assert links.count("\n") == 2, "its own loopback and its own device"
        assert await provider.run("cat /sys/fs/cgroup/memory/memory.limit_in_bytes") == "67108864\n"


async def test_it_has_no_rights_on_the_host(machine: Machine) -> None:
    async with machine.provider() as provider:
        await provider.up(group(service()))
        for command, said in {
            "mount -t tmpfs x /tmp": "denied",
            "unshare -r true": "not permitted",
            "unshare -n true": "not permitted",
            "mknod /tmp/d b 259 0 && dd if=/tmp/d of=/dev/null count=1": "",
            "echo 1 > /proc/sys/kernel/panic": "Read-only",
            "echo b > /proc/sysrq-trigger": "",
            "hostname other": "",
            "dmesg": "not permitted",
            "ip addr add 10.213.9.9/32 dev eth0": "not permitted",
        }.items():
            output = await provider.run(f"{command}; echo code $?")
            assert "code 0" not in output, (command, output)
            assert said.lower() in output.lower(), (command, output)
        status = await provider.run("cat /proc/self/status")
        fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
        assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
        # Root inside is nobody outside.
        (replica,) = await provider.deploy.runtime.replicas()
        with open(f"/proc/{replica.pid}/status", encoding="ascii") as host:
            uids = next(line for line in host if line.startswith("Uid:")).split()[1:]
        assert set(uids) == {str(machine.settings.id_base)}


async def test_leases_cannot_reach_one_another_but_services_of_one_can(machine: Machine) -> None:
    async with machine.provider() as provider:
        api = service("api", hosts=["api.localhost"])
        await provider.up(group(api, service()))
        await provider.up(group(service(hosts=["b.localhost"])), lease=OTHER)
        mine = [r for r in await provider.deploy.runtime.replicas() if r.lease == LEASE]
        address = next(r.address for r in mine if r.service == "api")
        fetch = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {} 80 | tail -n 1 || true; echo done"
        assert await _lookup(provider, "api", LEASE) == address
        assert await _lookup(provider, "api", OTHER) == "none"
        assert await provider.run(fetch.format(address)) == "hello\ndone\n"
        assert "hello" not in await provider.run(fetch.format(address), lease=OTHER)
        # The node itself offers nothing but names, and no way out (this node has no uplink).
        assert "hello" not in await provider.run(fetch.format("169.254.1.1"))


async def _lookup(provider: Provider, name: str, lease: LeaseId) -> str:
    """What the lease's DNS server answers."""
    output = await provider.run(f"nslookup {name} 169.254.1.1 2>&1", lease=lease)
    found = [line.split()[-1] for line in output.splitlines() if line.startswith("Address")]
    return found[-1] if len(found) > 1 else "none"


async def test_memory_is_limited(machine: Machine) -> None:
    async with machine.provider() as provider:
        await provider.up(group(service(memory=48 * MIB)))
        hog = "dd if=/dev/zero of=/dev/null bs=200M count=1; echo code $?"
        assert "code 137" in await provider.run(hog)
        assert (await provider.get())[0] == 200
        (replica,) = await provider.deploy.runtime.replicas()
        used = provider.deploy.runtime.usage(replica)
        assert used is not None
        assert used.oom_kills >= 1


async def test_a_fork_bomb_hits_its_own_limit(machine: Machine) -> None:
    async with machine.provider(pids=64) as provider:
        await provider.up(group(service(memory=256 * MIB)))
        output = await provider.run("for i in $(seq 200); do sleep 5 & done 2>&1; wait")
        assert "can't fork" in output or "Resource temporarily" in output
        (replica,) = await provider.deploy.runtime.replicas()
        usage = cgroups.usage(provider.deploy.runtime.cgroup(LEASE, replica.key))
        assert usage is not None
        assert usage.pids <= 64


async def test_a_full_disk_is_its_own(machine: Machine) -> None:
    async with machine.provider() as provider:
        volumes = [{"name": "cache", "mount": "/cache", "size": 8 * MIB}]
        await provider.up(group(service(disk=16 * MIB, volumes=volumes)))
        output = await provider.run("dd if=/dev/zero of=/fill bs=1M count=200 2>&1; df /")
        assert "No space left" in output
        assert await provider.run("rm /fill; echo ok > /cache/x; cat /cache/x") == "ok\n"
        assert (await provider.get())[0] == 200


async def test_a_flooder_is_slowed_down_alone(machine: Machine) -> None:
    async with machine.provider(log_rate=1 * MIB, log_bytes=256 * 1024, log_files=2) as provider:
        flood = service("flood", "exec yes flooding the log with lines", exposes=[])
        await provider.up(group(flood, service()))
        await asyncio.sleep(1.5)
        folder = provider.deploy.runtime.log_folder(LEASE) / "flood"
        with contextlib.suppress(FileNotFoundError):  # rotated between listing and looking
            assert sum(p.stat().st_size for p in folder.iterdir()) < 1 * MIB
        began = time.monotonic()
        assert (await provider.get())[0] == 200
        assert time.monotonic() - began < 1.0
        lines = [line async for line in provider.deploy.logs(LEASE, "flood", tail=5)]
        assert [line.text for line in lines] == ["flooding the log with lines"] * 5


async def test_a_hostile_image_cannot_lead_our_writes_out(machine: Machine) -> None:
    layer = machine.folder / "hostile"
    layer.mkdir(mode=0o755)
    outside = machine.folder / "outside"
    outside.mkdir()
    (layer / "bin").mkdir()
    shutil.copy("/bin/busybox", layer / "bin/busybox")
    (layer / "bin/sh").symlink_to("busybox")
    (layer / "etc").symlink_to(outside)
    (layer / "data").symlink_to(f"../../../../..{outside}")
    machine.images.layer = layer
    script = "/bin/busybox mkdir -p /w; exec /bin/busybox httpd -f -p 80 -h /w"
    volumes = [{"name": "data", "mount": "/data/deep", "size": 8 * MIB}]
    async with machine.provider() as provider:
        await provider.put(group(service(script=script, volumes=volumes)), "h1")
        failed = (await provider.until("deploy.failed", "h1")).payload
        assert failed.code == "image_unusable"
    assert list(outside.iterdir()) == []


@pytest.mark.soak
async def test_an_image_of_100_000_files_leaves_the_node_well(machine: Machine) -> None:
    """No file is copied or changed for a replica, so it starts as fast as a small one."""
    layer = machine.images.layer
    many = machine.folder / "many"
    for folder in range(100):
        (many / f"d{folder}").mkdir(parents=True)
        for number in range(1000):
            (many / f"d{folder}" / str(number)).touch()
    config = {"config": {}}
    ensure = machine.images.ensure

    async def stacked(reference: str, **more: Any) -> FakeImage:
        await ensure(reference, **more)
        return FakeImage(reference, f"sha256:{reference}", config, [layer, many])

    async with machine.provider() as provider:
        await provider.up(group(service()))
        machine.images.ensure = stacked  # type: ignore[method-assign,assignment]
        began = time.monotonic()
        await provider.up(group(service(hosts=["b.localhost"])), lease=OTHER)
        assert time.monotonic() - began < 10
        # Looking at all of them, and changing the owner of as many as the disk holds, is its own
        # business: the other lease goes on, and what the image is made of is untouched.
        count = await provider.run(
            "ls /d*/ | grep -c '^[0-9]'; chown -R 7:7 /d0; true", lease=OTHER
        )
        assert count.startswith("100000")
        assert (await provider.get())[0] == 200
        assert (many / "d0/0").stat().st_uid == 0
        await provider.close(OTHER)
        await provider.until("deploy.removed", lease=OTHER)
        assert (await provider.get())[0] == 200
