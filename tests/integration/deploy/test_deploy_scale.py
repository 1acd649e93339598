"""Many leases on one node."""

from __future__ import annotations

import asyncio
import time

import pytest
from conftest_deploy import MIB, Machine, group, service

from leasehold.model.market import LeaseId

LEASES = 200
IDLE = 20.0
"""Seconds of doing nothing over which the provider's CPU time is taken."""


@pytest.mark.soak
async def test_200_leases_are_healthy_and_cost_an_idle_provider_next_to_nothing(
    machine: Machine,
) -> None:
    leases = [LeaseId("akash1owner", 1000 + n, 1, 1, "akash1provider") for n in range(LEASES)]
    async with machine.provider() as provider:
        for lease in leases:
            asked = group(service(hosts=[f"l{lease.dseq}.localhost"], memory=16 * MIB))
            await provider.put(asked, "h1", lease)
        for lease in leases:
            await provider.until("deploy.healthy", "h1", lease, seconds=180)
        listed = await provider.deploy.workloads()
        assert len(listed) == LEASES
        assert all(status["healthy"] for status in listed)
        used = [status["services"]["web"]["replicas"][0]["memory_bytes"] for status in listed]
        assert min(used) > 0
        for lease in (leases[0], leases[-1]):
            assert await provider.get(f"l{lease.dseq}.localhost") == (200, b"hello\n")
        await asyncio.sleep(5)
        began, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(IDLE)
        share = (time.process_time() - cpu) / (time.monotonic() - began)
        print(f"idle CPU {share:.2%}, memory a lease {sum(used) / LEASES / MIB:.2f} MiB")
        assert share < 0.03
        await provider.deploy.teardown_all()
