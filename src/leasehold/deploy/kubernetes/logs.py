"""Logs of a lease on the cluster: what was kept of former replicas, what the present ones say.

A follower reads each replica's stream as the API server sends it, picks up replicas that come, and
when a stream breaks off goes on from the last line it had.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from leasehold.core.errors import Kind, LeaseholdError, not_found
from leasehold.deploy import logs
from leasehold.deploy.kubernetes import pods
from leasehold.deploy.kubernetes.api import Object
from leasehold.deploy.kubernetes.cache import labels
from leasehold.deploy.kubernetes.driver import KubernetesDriver
from leasehold.deploy.kubernetes.render import PREFIX
from leasehold.deploy.logs import TAIL_LIMIT, Line
from leasehold.deploy.workload import lease_name
from leasehold.model.market import LeaseId

QUEUE = 1000
"""Lines that wait for a slow reader; the streams wait with them."""

RETRY = 1.0
"""Seconds before a stream that broke off is begun again."""


async def read(
    driver: KubernetesDriver,
    lease: LeaseId,
    service: str | None,
    *,
    tail: int | None,
    ended: asyncio.Event | None = None,
) -> AsyncIterator[Line]:
    """Oldest first; follows until ``ended`` is set, without it what is there now is all."""
    if tail is not None:
        tail = max(0, min(tail, TAIL_LIMIT))
    lines = await _kept(driver, lease, service, tail)
    here = _replicas(driver, lease, service)
    if not lines and not here and ended is None:
        raise not_found("log", service or str(lease))
    newest: dict[str, str] = {}
    for name, number, pod in here:
        found = [
            Line(name, number, at, "stdout", text)
            async for at, text in _once(driver, lease, pod, tail)
        ]
        if found:
            newest[pod["metadata"]["name"]] = found[-1].at
        lines += found
    lines.sort(key=lambda line: line.at)
    for line in lines:
        yield line
    if ended is not None:
        async for line in _follow(driver, lease, service, ended, newest):
            yield line


def _replicas(
    driver: KubernetesDriver, lease: LeaseId, service: str | None
) -> list[tuple[str, int, Object]]:
    """``(service, number, pod)`` of those that have run."""
    here = driver.cluster.of("Pod", lease_name(lease))
    names = sorted({labels(pod).get(f"{PREFIX}service", "") for pod in here})
    return [
        (name, number, pod)
        for name in names
        if service in (None, name)
        for number, pod in enumerate(pods.of_service(here, name))
        if pods.running(pod) or pods.exits(pod)
    ]


async def _kept(
    driver: KubernetesDriver, lease: LeaseId, service: str | None, tail: int | None
) -> list[Line]:
    folder = driver.logs / lease_name(lease)
    if not folder.is_dir():
        return []
    return [line async for line in logs.read(folder, service, tail=tail)]


async def _once(
    driver: KubernetesDriver, lease: LeaseId, pod: Object, tail: int | None
) -> AsyncIterator[tuple[str, str]]:
    try:
        async for line in driver.api.logs(lease_name(lease), pod["metadata"]["name"], tail=tail):
            yield line
    except LeaseholdError as error:
        if error.kind is Kind.UNAVAILABLE:
            raise


async def _follow(
    driver: KubernetesDriver,
    lease: LeaseId,
    service: str | None,
    ended: asyncio.Event,
    newest: dict[str, str],
) -> AsyncIterator[Line]:
    queue: asyncio.Queue[Line | None] = asyncio.Queue(QUEUE)
    news = asyncio.Event()
    stop = driver.cluster.listen(lease_name(lease), news.set)

    async def one(name: str, number: int, pod: str) -> None:
        while driver.cluster.get("Pod", lease_name(lease), pod) is not None:
            last = newest.get(pod, "")
            with contextlib.suppress(LeaseholdError):
                async for at, text in driver.api.logs(lease_name(lease), pod, follow=True):
                    if at > last:
                        newest[pod] = at
                        await queue.put(Line(name, number, at, "stdout", text))
            await driver.clock.sleep(RETRY)

    async def all_of_them() -> None:
        streams: set[str] = set()
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(ended.wait())
            while not ended.is_set():
                news.clear()
                for name, number, pod in _replicas(driver, lease, service):
                    key = pod["metadata"]["name"]
                    if key not in streams:
                        streams.add(key)
                        tasks.create_task(one(name, number, key))
                waking = asyncio.ensure_future(news.wait())
                try:
                    await asyncio.wait({waking, watching}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waking.cancel()
            raise _Over

    async def run() -> None:
        try:
            await all_of_them()
        except* _Over:
            pass
        finally:
            with contextlib.suppress(asyncio.QueueFull):
                queue.put_nowait(None)

    running = asyncio.ensure_future(run())
    try:
        while True:
            taking = asyncio.ensure_future(queue.get())
            await asyncio.wait({taking, running}, return_when=asyncio.FIRST_COMPLETED)
            if not taking.done():
                taking.cancel()
                running.result()
                while not queue.empty():
                    line = queue.get_nowait()
                    if line is not None:
                        yield line
                return
            line = taking.result()
            if line is None:
                return
            yield line
    finally:
        running.cancel()
        await asyncio.wait({running})
        stop()


class _Over(Exception):
    """The lease has ended: so do its streams."""
