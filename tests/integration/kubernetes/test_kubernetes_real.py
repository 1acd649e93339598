"""Real containers on a real kubelet: traffic, commands, logs, limits."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from acting_kubelet import ActingKubelet
from conftest_kubernetes import Place, Provider, eventually, group, service
from real_node import RealNode, real_node

from leasehold.core.errors import LeaseholdError
from leasehold.deploy.kubernetes.api import Api
from leasehold.deploy.kubernetes.render import render
from leasehold.deploy.kubernetes.settings import KubernetesSettings
from leasehold.deploy.workload import Workload

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(240)]

IMAGE = "localhost/web:1"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with real_node(tmp_path_factory.mktemp("node")) as made:
        made.image(IMAGE, ["/bin/sleep", "1000000"])
        print(f"\na kubelet and containerd on a control plane of their own at {made.plane.url}")
        yield made


@pytest.fixture
async def place(node: RealNode, tmp_path: Path) -> AsyncIterator[Place]:
    settings = KubernetesSettings(kubeconfig=str(node.plane.kubeconfig("admin")))
    async with Api(settings) as api:
        address = f"akash1provider{secrets.token_hex(3)}"
        made = Place(node.plane, tmp_path, api, ActingKubelet(api, {}), address)
        await eventually(lambda: _node_ready(api), 60)
        yield made
        found, _ = await api.list("Namespace", labels={"leasehold.dev/provider": made.address})
        for item in found:
            await api.delete("Namespace", item["metadata"]["name"])


async def _node_ready(api: Api) -> bool:
    nodes, _ = await api.list("Node")
    return any(
        c["type"] == "Ready" and c["status"] == "True"
        for node in nodes
        for c in node["status"].get("conditions", [])
    ) and not any(node["spec"].get("taints") for node in nodes)


def web(text: str, *, count: int = 2, port: int = 8080, **more: Any) -> dict[str, Any]:
    """A web server that says ``text``; told to end, it does so after half a second."""
    script = (
        f"mkdir -p /tmp/w; echo {text} > /tmp/w/index.html; echo serving {text}; "
        f"exec httpd -f -p {port} -h /tmp/w"
    )
    made = service(image=IMAGE, count=count, cpu=50, command=["/bin/sh", "-c", script], **more)
    made["expose"][0]["port"] = port
    return made


async def get(address: str, port: int) -> str:
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(b"GET / HTTP/1.0\r\nHost: a.test\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert b" 200 " in head.split(b"\r\n")[0], head
        return body.decode().strip()
    finally:
        writer.close()


class Proxy:
    """Sends requests as an ingress controller does: to the ready endpoints of a service, of whose
    changes it hears a little late."""

    def __init__(self, place: Place, namespace: str) -> None:
        self.place = place
        self.url = f"apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        self.targets: list[tuple[str, int]] = []
        self.answers: dict[str, int] = {}
        self.failures: list[str] = []

    async def learn(self) -> None:
        found = (await self.place.api.raw.get(self.url)).json()["items"]
        self.targets = [
            (endpoint["addresses"][0], part["ports"][0]["port"])
            for part in found
            for endpoint in part.get("endpoints") or []
            if endpoint["conditions"]["ready"]
        ]

    @contextlib.asynccontextmanager
    async def load(self, rate: int) -> AsyncIterator[None]:
        """Requests at ``rate`` a second for as long as the block lasts."""
        await self.learn()

        async def hear() -> None:
            while True:
                await asyncio.sleep(0.2)
                await self.learn()

        async def one(number: int) -> None:
            address, port = self.targets[number % len(self.targets)]
            try:
                async with asyncio.timeout(20):
                    said = await get(address, port)
                self.answers[said] = self.answers.get(said, 0) + 1
            except (OSError, AssertionError, TimeoutError) as error:
                self.failures.append(f"{address}:{port} {error!r}")

        async def send() -> None:
            began, sent = time.monotonic(), 0
            async with asyncio.TaskGroup() as tasks:
                while not done.is_set():
                    due = int((time.monotonic() - began) * rate)
                    for _ in range(min(due - sent, rate)):
                        tasks.create_task(one(sent))
                        sent += 1
                    await asyncio.sleep(0.01)

        done = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            hearing = tasks.create_task(hear())
            sending = tasks.create_task(send())
            try:
                yield
            finally:
                done.set()
                await asyncio.wait({sending})
                hearing.cancel()


async def test_ten_replicas_and_updates_that_drop_no_request(place: Place) -> None:
    async with place.provider(stop_grace=2.0, unready_seconds=2, start_attempts=1) as provider:
        began = time.monotonic()
        await provider.up(group(web("one", count=10)), seconds=90)
        print(f"\n10 real replicas healthy after {time.monotonic() - began:.1f} s")
        proxy = Proxy(place, provider.namespace)
        async with proxy.load(rate=100):
            await asyncio.sleep(0.5)
            await provider.up(group(web("two", count=3)), "h2", seconds=90)
            # Another port inside: every replica is reached at its own.
            await provider.up(group(web("three", count=3, port=9090)), "h3", seconds=90)
            # One that fails, and the way back.
            bad = web("four", count=3)
            bad["command"] = ["/bin/sh", "-c", "exit 7"]
            await provider.put(group(bad), "h4")
            failed = (await provider.until("deploy.failed", "h4", seconds=90)).payload
            assert (failed.code, "exit code 7" in failed.message) == ("keeps_ending", True)
            await asyncio.sleep(1.0)
        print(f"answers: {proxy.answers}")
        assert proxy.failures == []
        assert set(proxy.answers) == {"one", "two", "three"}
        assert proxy.targets and all(port == 9090 for _, port in proxy.targets)


async def run(provider: Provider, *command: str, **how: Any) -> tuple[str, str, int]:
    """Output, errors and exit code of a command in the first replica."""
    found = await provider.deploy.exec(provider.lease, "web", list(command), **how)
    try:
        out: dict[int, bytes] = {1: b"", 2: b""}
        async for stream, data in found.output():
            out[stream] += data
        return out[1].decode(), out[2].decode(), await found.wait()
    finally:
        await found.kill()


async def test_commands_run_in_replicas(place: Place) -> None:
    async with place.provider() as provider:
        await provider.up(group(web("one", count=1)), seconds=60)
        said = await run(provider, "sh", "-c", "echo out; echo err >&2; exit 3")
        assert said == ("out\n", "err\n", 3)
        assert (await run(provider, "sh", "-c", "echo $A $AKASH_OWNER"))[0] == "b akash1owner\n"
        with pytest.raises(LeaseholdError) as caught:
            await run(provider, "/no/such/program")
        assert caught.value.code == "executable_not_found"

        found = await provider.deploy.exec(provider.lease, "web", ["cat"], stdin=True)
        await found.write(b"hello")
        await found.close_input()
        assert [data async for _, data in found.output()] == [b"hello"]
        assert await found.wait() == 0
        await found.kill()

        found = await provider.deploy.exec(
            provider.lease, "web", ["sh", "-c", "read x; stty size"], tty=True, stdin=True
        )
        await found.resize(132, 43)
        await asyncio.sleep(0.3)
        await found.write(b"go\n")
        shown = b"".join([data async for _, data in found.output()])
        assert b"43 132" in shown
        await found.kill()

        # Left in the middle.
        found = await provider.deploy.exec(provider.lease, "web", ["sleep", "1000"])
        await found.kill()
        with pytest.raises(LeaseholdError, match="replica"):
            await provider.deploy.exec(provider.lease, "web", ["true"], replica=5)


async def test_logs_are_read_followed_and_kept(place: Place) -> None:
    script = "for i in 1 2 3; do echo line $i; done; until test -e /tmp/go; do sleep 0.1; done; "
    script += "echo last; exec sleep 1000"
    talking = web("x", count=1)
    talking["command"] = ["/bin/sh", "-c", script]
    talking["expose"][0]["proto"] = "UDP"  # Nothing to answer on.
    async with place.provider() as provider:
        await provider.up(group(talking), seconds=60)

        async def texts(**how: Any) -> list[str]:
            return [line.text async for line in provider.deploy.logs(provider.lease, **how)]

        assert await texts() == ["line 1", "line 2", "line 3"]
        assert await texts(tail=1) == ["line 3"]
        followed: list[str] = []

        async def follow() -> None:
            async for line in provider.deploy.logs(provider.lease, follow=True, tail=1):
                followed.append(line.text)  # noqa: PERF401 (looked at meanwhile)

        following = asyncio.ensure_future(follow())
        await eventually(lambda: followed == ["line 3"])
        await run(provider, "sh", "-c", "echo > /tmp/go")
        await eventually(lambda: followed == ["line 3", "last"])
        found = await provider.deploy.search_logs(provider.lease, None, "LINE 2", 10)
        assert [line.text for line in found] == ["line 2"]
        await provider.close()
        await provider.until("deploy.removed", seconds=60)
        async with asyncio.timeout(10):
            await following
        # The pod is gone, its last lines are not.
        assert await texts() == ["line 1", "line 2", "line 3", "last"]


async def test_a_replica_that_ends_is_told_and_restarted(place: Place) -> None:
    async with place.provider(monitor_retry=0.2) as provider:
        ending = web("one", count=1)
        script = "until test -e /tmp/go; do sleep 0.1; done; echo so long; exit 9"
        ending["command"] = ["/bin/sh", "-c", script]
        ending["expose"][0]["proto"] = "UDP"  # Nothing to answer on.
        await provider.up(group(ending), seconds=60)
        await run(provider, "sh", "-c", "echo > /tmp/go")
        ended = (await provider.until("deploy.exited", seconds=60)).payload
        assert (ended.service, ended.status) == ("web", 9 << 8)
        await eventually(lambda: _restarts(provider), 60)
        # What the ended container said was kept.
        await eventually(lambda: _kept(provider))


async def _restarts(provider: Provider) -> bool:
    status = await provider.deploy.status(provider.lease)
    replicas = status["services"]["web"]["replicas"]
    return status["healthy"] is True and [r["restarts"] for r in replicas] == [1]


async def _kept(provider: Provider) -> bool:
    lines = [line.text async for line in provider.deploy.logs(provider.lease)]
    return "so long" in lines


async def test_limits_are_the_lease_s(place: Place) -> None:
    async with place.provider() as provider:
        await provider.up(group(web("one", count=1)), seconds=60)
        memory = await run(provider, "sh", "-c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes "
                           "2>/dev/null || cat /sys/fs/cgroup/memory.max")  # fmt: skip
        assert memory[0].strip() == str(16 << 20)
        caps = await run(provider, "sh", "-c", "cat /proc/self/status")
        assert "NoNewPrivs:\t1" in caps[0]
        assert "Seccomp:\t2" in caps[0]
        assert (await run(provider, "ls", "/var/run/secrets"))[2] != 0  # No service account.


async def test_what_the_driver_adds_to_what_the_cluster_takes(place: Place) -> None:
    """From manifest to healthy, beside the same Deployment applied by hand until it is available;
    one after the other in turns. What the cluster takes by itself is most of it."""
    ours, by_hand = [], []
    async with place.provider() as provider:
        await eventually(lambda: provider.deploy.cluster.reachable)
        for number in range(3):
            lease = place.lease_of(200 + number)
            began = time.monotonic()
            made = group(web("one", count=1, hosts=(f"h{number}.test",)))
            await provider.put(made, "h1", lease)
            await provider.until("deploy.healthy", "h1", lease, 60)
            ours.append(time.monotonic() - began)
            by_hand.append(await _by_hand(place, provider, made, number))
    ours_s, by_hand_s = statistics.median(ours), statistics.median(by_hand)
    print(f"\nmanifest to healthy {ours_s:.2f} s; the same Deployment by hand {by_hand_s:.2f} s")
    assert ours_s < by_hand_s + 5.0


async def _by_hand(place: Place, provider: Provider, made: Any, number: int) -> float:
    workload = Workload.of(place.lease_of(300 + number), "h1", made)
    objects = render(workload, provider.deploy.settings)
    keep = [found for found in objects if found["kind"] in ("Namespace", "Deployment")]
    name = workload.name
    began = time.monotonic()
    for found in keep:
        await place.api.apply(found)
    url = f"apis/apps/v1/namespaces/{name}/deployments/web"
    while True:
        status = (await place.api.raw.get(url)).json().get("status", {})
        if status.get("availableReplicas"):
            return time.monotonic() - began
        await asyncio.sleep(0.02)
