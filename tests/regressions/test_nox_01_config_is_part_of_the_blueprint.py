"""Defect 1: configuration was not in the hash, so a change took effect one restart late.

Seen failing with ``service_blueprint`` of ``node/blueprint.py`` returning the service's code alone:
the same process goes on with the old configuration.
"""

from __future__ import annotations

from pathlib import Path

from leasehold.node.distro import PackageDistro
from leasehold.node.testing import node_in, python_service


def package(path: str) -> PackageDistro:
    service = python_service("svc", "@service.function\ndef path(): return service.config['path']")
    return PackageDistro(
        name="p", services=(service,), config={"path": path}, on_config_change="reinstall"
    )


async def test_a_changed_path_is_used_at_once(tmp_path: Path) -> None:
    async with node_in(tmp_path, package("/usr/bin/ipfs"), keep=True) as node:
        assert (await node.call("svc", "path", []))["value"] == "/usr/bin/ipfs"
    async with node_in(tmp_path, package("/opt/ipfs")) as node:
        assert (await node.call("svc", "path", []))["value"] == "/opt/ipfs"
