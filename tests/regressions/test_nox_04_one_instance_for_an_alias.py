"""Defect 4: after a failed removal two instances lived on and could come back with one alias.

Seen failing with ``("candidate",)`` instead of ``("candidate", "retiring")`` in
``Remover.recover``: the old process still runs after the restart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leasehold.node.distro import PackageDistro
from leasehold.node.journal import ROOT_SCOPE
from leasehold.node.testing import node_in, python_service


def package(version: int) -> PackageDistro:
    service = python_service("svc", f"@service.function\ndef v(): return {version}")
    return PackageDistro(name="p", version=str(version), services=(service,))


async def test_the_loser_never_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with node_in(tmp_path, package(1), keep=True) as node:

        async def refuse(instance: Any) -> None:
            raise OSError("device busy")

        monkeypatch.setattr(node.services, "remove", refuse)
        node.extra = {"p": package(2)}
        await node.reload()
        assert (await node.call("svc", "v", []))["value"] == 2
        assert len(node.journal.instances) == 2
    async with node_in(tmp_path, package(2)) as node:
        [instance] = node.journal.instances.values()
        assert node.journal.aliases == {(ROOT_SCOPE, "svc"): instance.id}
        assert set(await node.supervisor.refresh()) == {instance.id}
        assert (await node.call("svc", "v", []))["value"] == 2
