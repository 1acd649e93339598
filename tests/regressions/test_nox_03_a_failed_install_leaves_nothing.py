"""Defect 3: a failure after creation left an orphan, and nothing ever collected orphans.

Seen failing with ``return`` as first statement of ``Remover.drop``: the process, its
directory and its row stay.
"""

from __future__ import annotations

from pathlib import Path

from leasehold.node.distro import InitCall, PackageDistro, SpellDistro
from leasehold.node.testing import node_in, python_service


async def test_no_process_directory_row_or_file(tmp_path: Path) -> None:
    service = python_service("svc", "@service.function\ndef setup(): raise Refused('no')")
    spell = SpellDistro(name="s", script="1")
    package = PackageDistro(
        name="p", services=(service,), spells=(spell,), init=(InitCall("svc.setup"),)
    )
    async with node_in(tmp_path, package) as node:
        assert node.deployer.results["p"].status == "failed"
        assert not node.journal.instances
        assert not await node.supervisor.refresh()
        assert not node.services.on_disk() | node.spells.on_disk()
        assert not list((tmp_path / "blueprints").iterdir())
