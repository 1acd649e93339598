"""Deployments on a runtime in memory: what is started, kept, retried and said."""

from __future__ import annotations

from leasehold.core.clock import VirtualClock
from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.deploy.machine import State
from leasehold.deploy.rollout import pinned
from leasehold.deploy.testing import LEASE, Bench, service, workload
from leasehold.model.events.lease import DeployFailed, ReplicaExited, WorkloadUnhealthy


def test_up_update_close(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = Bench(virtual)
        async with bench.running() as deployment:
            deployment.want(workload("h1"))
            await bench.until(lambda: "WorkloadHealthy" in bench.kinds())
            before = set(bench.runtime.running)
            # Only hosts and count change: the running replica is kept, one is added.
            again = service(count=2, expose=[])
            deployment.want(workload("h2", again))
            await bench.until(lambda: bench.kinds().count("WorkloadHealthy") == 2)
            assert before < set(bench.runtime.running)
            assert bench.runtime.starts == 2
            deployment.close()
            await bench.until(lambda: deployment.state is State.TEARDOWN_COMPLETE)
        assert bench.runtime.running == {}
        assert bench.kinds()[-1] == "WorkloadRemoved"
        assert bench.volumes.released == [("owner", 1)]

    virtual.run(main)


def test_images_are_held_as_long_as_something_runs_from_them(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = Bench(virtual)
        lease = str(LEASE)
        async with bench.running() as deployment:
            bench.images.digests["img"] = "sha256:one"
            deployment.want(workload("h1"))
            await bench.until(lambda: "WorkloadHealthy" in bench.kinds())
            assert bench.images.held == {(lease, "sha256:one")}
            bench.images.digests["img"] = "sha256:two"
            deployment.want(workload("h2", service(env=["A=b"])))
            await bench.until(lambda: bench.kinds().count("WorkloadHealthy") == 2)
            await bench.until(lambda: bench.images.held == {(lease, "sha256:two")})
            deployment.close()
            await bench.until(lambda: deployment.state is State.TEARDOWN_COMPLETE)
        assert bench.images.held == set()

    virtual.run(main)


def test_a_registry_that_is_down_is_waited_for(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = Bench(virtual)
        bench.images.errors["img"] = [unavailable("down", "down")] * 5
        async with bench.running() as deployment:
            deployment.want(workload("h1"))
            await bench.until(lambda: "WorkloadHealthy" in bench.kinds())
        assert bench.kinds().count("DeployFailed") == 1, "said once, not at every try"
        assert not next(p for p in bench.said if isinstance(p, DeployFailed)).final

    virtual.run(main)


def test_a_failed_update_leaves_what_ran(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = Bench(virtual)
        async with bench.running() as deployment:
            deployment.want(workload("h1"))
            await bench.until(lambda: "WorkloadHealthy" in bench.kinds())
            before = dict(bench.runtime.running)
            bench.runtime.refuse["web"] = LeaseholdError("runtime_failed", "no such program")
            deployment.want(workload("h2", service(env=["A=b"])))
            await bench.until(lambda: "DeployFailed" in bench.kinds())
            await bench.until(lambda: deployment.state is State.COMPLETE)
            assert bench.runtime.running.keys() == before.keys()
            assert deployment.applied is not None
            assert deployment.applied.workload.hash == "h1"
            assert deployment.error is not None
            assert deployment.error.code == "runtime_failed"

    virtual.run(main)


def test_an_update_while_one_is_going_on_takes_only_the_newest(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = Bench(virtual, start_deadline=10.0)
        bench.runtime.silent.add("web")
        async with bench.running() as deployment:
            deployment.want(workload("h1"))
            await bench.clock.sleep(1)
            for number in range(2, 9):
                deployment.want(workload(f"h{number}", service(env=[f"V={number}"])))
            await bench.clock.sleep(1)
            assert deployment.state is State.PENDING
            bench.runtime.silent.clear()
            await bench.until(lambda: deployment.state is State.COMPLETE)
            assert deployment.applied is not None
            assert deployment.applied.workload.hash == "h8"
        assert bench.runtime.starts == 2

    virtual.run(main)


def test_a_close_during_an_attempt_does_not_wait_for_it(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = Bench(virtual)
        bench.runtime.silent.add("web")
        async with bench.running() as deployment:
            deployment.want(workload("h1"))
            await bench.clock.sleep(5)
            began = bench.clock.monotonic()
            deployment.close()
            await bench.until(lambda: deployment.state is State.TEARDOWN_COMPLETE)
            assert bench.clock.monotonic() - began < 1
        assert bench.runtime.running == {}

    virtual.run(main)


def test_a_teardown_is_tried_until_it_is_done(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = Bench(virtual)
        async with bench.running() as deployment:
            deployment.want(workload("h1"))
            await bench.until(lambda: "WorkloadHealthy" in bench.kinds())
            bench.runtime.away = True
            deployment.close()
            await bench.clock.sleep(3600)
            assert deployment.state is State.TEARDOWN_ACTIVE
            assert "teardown_failed" in [
                p.code for p in bench.said if isinstance(p, DeployFailed)
            ], "after the usual number of tries somebody is told"
            bench.runtime.away = False
            await bench.until(lambda: deployment.state is State.TEARDOWN_COMPLETE, 10)
        assert bench.runtime.running == {}

    virtual.run(main)


def test_what_ends_is_started_again_later_each_time(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = Bench(virtual, restart_first=1.0, restart_cap=8.0)
        async with bench.running() as deployment:
            deployment.want(workload("h1"))
            await bench.until(lambda: "WorkloadHealthy" in bench.kinds())
            (key,) = bench.runtime.running
            waits = []
            for _ in range(5):
                bench.runtime.end(key, 3)
                began = bench.clock.monotonic()
                starts = bench.runtime.starts
                await bench.until(lambda starts=starts: bench.runtime.starts > starts)
                waits.append(round(bench.clock.monotonic() - began))
                await bench.clock.sleep(0.2)
            assert waits == [1, 2, 4, 8, 8]
            # It lived long enough: the wait starts over.
            await bench.clock.sleep(120)
            bench.runtime.end(key)
            began = bench.clock.monotonic()
            await bench.until(lambda: bench.runtime.starts == 7)
            assert bench.clock.monotonic() - began < 1.5
        exits = [p for p in bench.said if isinstance(p, ReplicaExited)]
        assert [e.reason for e in exits[:2]] == ["exit code 3", "exit code 3"]

    virtual.run(main)


def test_a_restart_takes_the_image_that_was_started_not_what_its_tag_names_now(
    virtual: VirtualClock,
) -> None:
    async def main() -> None:
        bench = Bench(virtual)
        bench.images.digests["r.test:5000/app:v1"] = "sha256:one"
        async with bench.running() as deployment:
            deployment.want(workload("h1", service(image="r.test:5000/app:v1")))
            await bench.until(lambda: "WorkloadHealthy" in bench.kinds())
            bench.images.digests["r.test:5000/app:v1"] = "sha256:two"
            (key,) = bench.runtime.running
            bench.runtime.end(key)
            await bench.until(lambda: bench.runtime.starts == 2)
        assert bench.images.asked == ["r.test:5000/app:v1", "r.test:5000/app@sha256:one"]
        assert pinned("app", "sha256:x") == "app@sha256:x"
        assert pinned("r.test:5000/app", "sha256:x") == "r.test:5000/app@sha256:x"
        assert pinned("app@sha256:y", "sha256:x") == "app@sha256:y"

    virtual.run(main)


def test_adoption_asks_nobody_and_starts_nothing(virtual: VirtualClock) -> None:
    async def main() -> None:
        first = Bench(virtual)
        async with first.running() as deployment:
            deployment.want(workload("h1"))
            await first.until(lambda: "WorkloadHealthy" in first.kinds())
        second = Bench(virtual)
        second.runtime.running = first.runtime.running
        second.images.errors["img"] = [LeaseholdError("gone", "gone", kind=Kind.NOT_FOUND)] * 9
        assert first.deployment.applied is not None
        second.history.hash = "h1"
        second.history.healthy = True
        second.history.revisions = first.deployment.applied.revisions
        second.history.workload = workload("h1")
        async with second.running() as deployment:
            deployment.want(workload("h1"))
            await second.until(lambda: deployment.state is State.COMPLETE)
            await second.clock.sleep(60)
            assert deployment.health.healthy is True
        assert second.runtime.starts == 0
        assert second.images.asked == []
        assert second.said == [], "nothing is new, so nothing is said"

    virtual.run(main)


def test_a_runtime_that_is_away_at_the_start_is_waited_for(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = Bench(virtual)
        async with bench.running() as deployment:
            deployment.want(workload("h1"))
            await bench.until(lambda: "WorkloadHealthy" in bench.kinds())
        again = Bench(virtual)
        again.runtime.running = bench.runtime.running
        first = deployment.applied
        assert first is not None
        again.history.hash, again.history.revisions = "h1", first.revisions
        again.history.workload, again.history.healthy = first.workload, True
        again.runtime.away = True
        async with again.running() as deployment:
            deployment.want(workload("h1"))
            await again.until(lambda: "DeployFailed" in again.kinds())
            await virtual.sleep(600)
            assert deployment.applied is None
            again.runtime.away = False
            await again.until(lambda: deployment.state is State.COMPLETE)
            assert deployment.applied is not None, "taken over, and watched from here on"
            assert again.runtime.starts == 0

    virtual.run(main)


def test_what_a_killed_provider_could_not_say_is_said_by_the_next(virtual: VirtualClock) -> None:
    async def main() -> None:
        first = Bench(virtual)
        async with first.running() as deployment:
            deployment.want(workload("h1"))
            await first.until(lambda: "WorkloadHealthy" in first.kinds())
        assert first.deployment.applied is not None
        second = Bench(virtual)
        second.runtime.running = first.runtime.running
        second.history.hash = "h1"
        second.history.revisions = first.deployment.applied.revisions
        second.history.workload = workload("h1")
        async with second.running() as deployment:
            deployment.want(workload("h1"))
            await second.clock.sleep(600)
        assert second.runtime.starts == 0
        assert second.kinds() == ["WorkloadHealthy"], "it was running, and never said to be healthy"

    virtual.run(main)


def test_unhealthy_is_said_once_and_the_lease_given_up_in_the_end(virtual: VirtualClock) -> None:
    async def main() -> None:
        bench = Bench(virtual)
        async with bench.running() as deployment:
            deployment.want(workload("h1"))
            await bench.until(lambda: "WorkloadHealthy" in bench.kinds())
            bench.runtime.silent.add("web")
            await bench.until(lambda: deployment.health.unhealthy_checks == 10)
            assert deployment.health.attempts_left == 30
            assert bench.market.closed == []
            began = bench.clock.monotonic()
            await bench.until(lambda: bool(bench.market.closed), 3600)
            assert 4 * 30 < bench.clock.monotonic() - began < 19 * 32
        assert bench.market.closed[0] == (LEASE, 10000)
        said = [p for p in bench.said if isinstance(p, WorkloadUnhealthy)]
        assert [s.reason for s in said] == ["web: not answering"]

    virtual.run(main)
