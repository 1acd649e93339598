"""Defect 14: dropped keys stayed, write errors were swallowed, one error cancelled other packages.

Seen failing, in this order: without the ``DELETE`` of dropped keys in ``SpellStore.write``; with
``except OSError: pass`` around it in ``SpellEngine.install``; with the first failed package raised
out of the task group in ``Deployer.deploy``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leasehold.node.distro import PackageDistro, SpellDistro
from leasehold.node.settings import NodeSettings
from leasehold.node.spells.store import SpellStore
from leasehold.node.testing import node_in, python_service


def package(kv: dict[str, Any]) -> PackageDistro:
    return PackageDistro(name="p", spells=(SpellDistro(name="s", script="1", kv=kv),))


async def test_a_key_that_was_dropped_is_gone(tmp_path: Path) -> None:
    async with node_in(tmp_path, package({"a": 1, "b": 2})) as node:
        node.extra = {"p": package({"b": 3})}
        await node.reload()
        id = node.find("s", spell=True).id
        keys = await node.spells.use(id, lambda s: s.dump())
        assert {k: v["value"] for k, v in keys.items()} == {"b": "3"}


async def test_a_script_that_cannot_be_written_fails_the_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    async with node_in(tmp_path) as node:
        monkeypatch.setattr(SpellStore, "write", full)
        node.extra = {"p": package({})}
        result = (await node.reload())["p"]
        assert result.status == "failed"
        assert "no space left" in result.message
        assert not node.journal.instances
        assert not node.spells.on_disk()


async def test_a_failing_package_leaves_the_others_alone(tmp_path: Path) -> None:
    slow = python_service("slow", "import time; time.sleep(0.5)")
    fails = python_service("fails", "raise SystemExit(1)")
    settings = NodeSettings(health_sec=0, deploy_attempts=1, parallel_packages=4)
    async with node_in(
        tmp_path,
        PackageDistro(name="fails", services=(fails,)),
        PackageDistro(name="slow", services=(slow,)),
        PackageDistro(name="bad", spells=(SpellDistro(name="self", script=""),)),
        settings=settings,
    ) as node:
        status = {name: r.status for name, r in node.deployer.results.items()}
        assert status == {"fails": "failed", "slow": "ready", "bad": "failed"}
