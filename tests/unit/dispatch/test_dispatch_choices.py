"""Who gets a task, who waits, what a drain and a lost worker mean; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.dispatch.manager import Manager
from leasehold.dispatch.registry import WorkerState, dial_target
from leasehold.dispatch.task import Retry
from leasehold.dispatch.testing import cluster
from leasehold.dispatch.transport import LinkClosed
from leasehold.dispatch.wire import PING, Request
from leasehold.dispatch.worker import MAX_UNSENT, Job, Reply

order: list[str] = []


async def sleep(job: Job) -> AsyncIterator[Reply]:
    seconds, _, name = job.payload.decode().partition(":")
    order.append(name)
    yield Reply("Started")
    await asyncio.sleep(float(seconds))
    yield Reply("Done", job.payload, final=True)


def test_least_outstanding_prefers_the_idle_worker(virtual: VirtualClock) -> None:
    async def main() -> None:
        async with cluster(
            {"Sleep": sleep}, workers=2, clock=virtual, policy="least_outstanding"
        ) as c:
            long = [asyncio.create_task(c.manager.call(c.call("Sleep", b"100:"))) for _ in range(3)]
            await virtual.sleep(0.1)
            for _ in range(9):
                await c.manager.call(c.call("Sleep", b"1:"))
            sent = sorted(w.session.sent for w in c.manager.registry.workers.values() if w.session)
            assert sent == [2, 10]  # all nine short ones went to the one with one long task
            for task in long:
                task.cancel()
            await asyncio.gather(*long, return_exceptions=True)

    virtual.run(main)


def test_waiting_callers_take_turns(virtual: VirtualClock) -> None:
    async def main() -> None:
        order.clear()
        async with cluster({"Sleep": sleep}, clock=virtual, concurrency=1, prefetch=0) as c:

            def ask(caller: str, name: str) -> asyncio.Task[object]:
                call = c.call("Sleep", f"1:{name}".encode(), caller=caller)
                return asyncio.create_task(c.manager.call(call))

            tasks = [ask("greedy", f"g{i}") for i in range(20)]
            await virtual.sleep(0.1)
            tasks += [ask("modest", f"m{i}") for i in range(2)]
            await asyncio.gather(*tasks)
        assert order.index("m0") <= 3
        assert order.index("m1") <= 5
        assert [n for n in order if n[0] == "g"] == [f"g{i}" for i in range(20)]

    virtual.run(main)


def test_a_draining_worker_finishes_what_runs_and_gets_nothing_new(virtual: VirtualClock) -> None:
    async def main() -> None:
        async with cluster(
            {"Sleep": sleep}, workers=2, clock=virtual, drain_timeout=30.0, concurrency=2
        ) as c:
            running_ = [
                asyncio.create_task(c.manager.call(c.call("Sleep", b"10:", retry=Retry.NEVER)))
                for _ in range(4)
            ]
            await virtual.sleep(1.0)
            leaving = c.workers["w1"]
            record = c.manager.registry.get(leaving.id)
            stopping = asyncio.create_task(leaving.shutdown())
            await virtual.sleep(0.1)
            assert record.state is WorkerState.CLOSING
            more = [
                asyncio.create_task(c.manager.call(c.call("Sleep", b"1:", retry=Retry.NEVER)))
                for _ in range(4)
            ]
            assert len(await asyncio.gather(*running_, *more)) == 8
            await stopping
            staying = c.manager.registry.get(c.workers["w2"].id)
            assert staying.session is not None
            assert staying.session.sent == 6

    virtual.run(main)


@pytest.mark.parametrize(
    ("retry", "code"),
    [(Retry.NEVER, "worker_lost"), (Retry.UNTIL_OUTPUT, "worker_lost"), (Retry.IDEMPOTENT, "")],
)
def test_a_lost_worker_after_output(virtual: VirtualClock, retry: Retry, code: str) -> None:
    async def main() -> None:
        async with cluster({"Sleep": sleep}, workers=2, clock=virtual) as c:
            async with c.manager.submit(c.call("Sleep", b"5:", retry=retry)) as task:
                assert (await anext(task)).type == "Started"
                await virtual.sleep(1.0)
                attempt = task.attempt
                assert attempt is not None
                await c.net.kill(
                    next(
                        address
                        for address, worker in c.workers.items()
                        if c.manager.registry.get(worker.id).session is attempt.session
                    )
                )
                if code:
                    with pytest.raises(LeaseholdError) as lost:
                        await anext(task)
                    assert lost.value.code == code
                else:
                    rest = [response.type async for response in task]
                    assert rest == ["Started", "Done"]  # the second attempt, from its beginning
                    assert task.attempts == 2

    virtual.run(main)


def test_a_task_that_ends_every_worker_is_given_up(virtual: VirtualClock) -> None:
    async def main() -> None:
        async with cluster({"Sleep": sleep}, workers=3, clock=virtual, max_attempts=3) as c:
            doomed = asyncio.create_task(
                c.manager.call(c.call("Sleep", b"50:", retry=Retry.IDEMPOTENT))
            )
            for _ in range(3):
                await virtual.sleep(1.0)
                for address, worker in c.workers.items():
                    session = c.manager.registry.get(worker.id).session
                    if session is not None and session.attempts:
                        await c.net.kill(address)
            with pytest.raises(LeaseholdError, match="3 workers were tried"):
                await doomed

    virtual.run(main)


def test_a_stopped_manager_tells_its_callers(virtual: VirtualClock) -> None:
    async def main() -> None:
        async with cluster({"Sleep": sleep}, clock=virtual) as c:
            other = Manager(virtual, c.manager.settings, dialers=[c.net.dialer()], http=False)
            async with running(other):
                c.net.announce(other, c.workers["w1"])
                await other.wait_for_worker("test", "test-1")
                waiting = asyncio.create_task(other.call(c.call("Sleep", b"50:")))
                await virtual.sleep(1.0)
            with pytest.raises(LeaseholdError) as stopped:
                await waiting
            assert stopped.value.code == "manager_stopped"
            assert len(await c.manager.call(c.call("Sleep", b"1:"))) == 2

    virtual.run(main)


@pytest.mark.parametrize("type_", [PING, "Sleep"])
def test_a_manager_that_never_reads_loses_its_stream(virtual: VirtualClock, type_: str) -> None:
    async def main() -> None:
        async with cluster({"Sleep": sleep}, clock=virtual, concurrency=1, backlog=5) as c:
            link = await c.net.dialer().dial("w1")
            sent = 0
            with pytest.raises(LinkClosed):
                for sent in range(MAX_UNSENT + 1000):
                    await link.send(Request(str(sent), type_, b"1000:"))
            assert sent > 1000
            assert len(await c.manager.call(c.call("Sleep", b"1:"))) == 2  # nobody else noticed

    virtual.run(main)


@pytest.mark.parametrize(
    ("address", "ip", "target"),
    [
        ("host:1", "10.0.0.1", "host:1"),
        (":1", "10.0.0.1", "10.0.0.1:1"),
        ("0.0.0.0:1", "10.0.0.1", "10.0.0.1:1"),
        ("[::]:1", "fe80::1", "[fe80::1]:1"),
        ("", "10.0.0.1", "10.0.0.1"),
    ],
)
def test_where_to_dial(address: str, ip: str, target: str) -> None:
    assert dial_target(address, ip) == target
