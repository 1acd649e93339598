"""The process runtime: never by itself, loud, and good enough to try things."""

from __future__ import annotations

import socket

import pytest
from conftest_deploy import LEASE, Machine, group, service

from leasehold.core.errors import LeaseholdError
from leasehold.deploy.oci import program


async def test_a_workload_as_a_process(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = f"mkdir -p w; echo plain > w/index.html; exec busybox httpd -f -p {port} -h w"
    exposes = [{"port": port, "externalPort": 80, "proto": "TCP", "global": True,
                "hosts": ["hello.localhost"]}]  # fmt: skip
    async with machine.provider(runtime="process") as provider:
        await provider.up(group(service(script=script, exposes=exposes)))
        assert await provider.get() == (200, b"plain\n")
        (replica,) = await provider.deploy.runtime.replicas()
        with pytest.raises(LeaseholdError, match="no inside"):
            await provider.deploy.exec(LEASE, "web", ["true"])
    async with machine.provider(runtime="process") as provider:
        assert await provider.get() == (200, b"plain\n")
        (again,) = await provider.deploy.runtime.replicas()
        assert again.pid == replica.pid
        await provider.deploy.teardown_all()
    said = capfd.readouterr()
    assert "NO isolation" in said.out + said.err


def test_it_is_never_chosen_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "find_program", lambda *names: None)
    with pytest.raises(LeaseholdError) as refused:
        program.choose("auto")
    assert refused.value.code == "no_runtime"
    assert "crun" in refused.value.message
