"""Ports and leased addresses stay what a tenant was told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.deploy.node_ports import NodePorts, PortKey
from leasehold.deploy.settings import DeploySettings
from leasehold.model.manifest import Expose
from leasehold.model.market import LeaseId

SETTINGS = DeploySettings(node_ports=(30_000, 30_001), leased_ips=("192.0.2.1", "192.0.2.2"))
ONE, TWO, OTHERS = (LeaseId(o, d, 1, 1, "p") for o, d in (("acme", 1), ("acme", 2), ("evil", 1)))


def port(lease: LeaseId, service: str = "web", ip: str = "") -> PortKey:
    return PortKey(str(lease), service, "TCP", 80, ip)


def expose(ip: str = "") -> Expose:
    return Expose(port=80, external_port=8000, proto="TCP", global_=True, ip=ip)


async def serve(ports: NodePorts, *keys: PortKey, up: bool = True) -> None:
    named = {key: expose(key.ip) for key in keys}
    await ports.move(keys[0].lease, named, dict.fromkeys(keys, "10.0.0.1") if up else {})


async def test_a_port_is_kept_while_its_replica_is_down_and_over_a_restart(tmp_path: Path) -> None:
    ports, file = NodePorts(None, SETTINGS, tmp_path / "ports"), tmp_path / "ports"
    await serve(ports, port(ONE))
    assert ports.number(port(ONE)) == 30_000
    await serve(ports, port(ONE), up=False)
    await serve(ports, port(OTHERS))
    assert (ports.published(port(ONE)), ports.number(port(OTHERS))) == (None, 30_001)
    ports = NodePorts(None, SETTINGS, file)
    assert [p.port for p in ports.restore()] == [30_001]
    with pytest.raises(LeaseholdError) as full:
        await serve(ports, port(TWO))
    assert full.value.code == "node_ports_exhausted"
    await serve(ports, port(ONE))
    assert ports.number(port(ONE)) == 30_000
    await ports.move(str(ONE), {}, {})
    await serve(ports, port(TWO))
    assert ports.number(port(TWO)) == 30_000


async def test_named_addresses_are_exchanged_between_leases_of_one_owner(tmp_path: Path) -> None:
    ports = NodePorts(None, SETTINGS, tmp_path / "ports")
    key, other = port(ONE, ip="mine"), port(TWO, ip="mine")
    await serve(ports, key)
    with pytest.raises(LeaseholdError) as nothing:
        await ports.transfer(LeaseId("evil", 1, 1, 1, "p"), ["mine"])
    assert nothing.value.code == "endpoint_not_held"
    await serve(ports, other, up=False)
    assert await ports.transfer(TWO, ["mine", "mine"]) == ["mine"]
    ports = NodePorts(None, SETTINGS, tmp_path / "ports")
    ports.restore()
    await serve(ports, other)
    fronts = [p.front for k in (key, other) if (p := ports.published(k)) is not None]
    assert fronts == ["192.0.2.2", "192.0.2.1"]


async def test_a_service_may_take_over_the_port_of_another_that_goes(tmp_path: Path) -> None:
    ports = NodePorts(None, SETTINGS, tmp_path / "ports")
    await serve(ports, port(ONE, "old", "mine"))
    await serve(ports, port(ONE, "new", "mine"))
    assert ports.published(port(ONE, "old", "mine")) is None
    with pytest.raises(LeaseholdError) as taken:
        await serve(ports, port(ONE, "new", "mine"), port(ONE, "more", "mine"))
    assert taken.value.code == "port_taken"


async def test_the_file_of_an_older_version_is_read(tmp_path: Path) -> None:
    rows = [
        [str(ONE), "web", "TCP", 80, 30_001, "10.0.0.1", 80],
        [str(TWO), "web", "TCP", 80, 30_000, "10.0.0.2", 80, "mine", "192.0.2.2", 8000],
    ]
    (tmp_path / "ports").write_text(json.dumps(rows))
    ports = NodePorts(None, SETTINGS, tmp_path / "ports")
    assert [(p.port, p.front, p.front_port) for p in ports.restore()] == [
        (30_001, "", 0),
        (30_000, "192.0.2.2", 8000),
    ]
