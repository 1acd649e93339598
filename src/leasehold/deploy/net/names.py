"""Names inside leases: keeps the table of the :mod:`.nameserver` process and starts it."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import leasehold
from leasehold.core.clock import Clock
from leasehold.core.service import Service
from leasehold.deploy.keeper.client import KeeperClient
from leasehold.deploy.net.node import NODE
from leasehold.deploy.net.rules import GATEWAY

PROCESS = "names"
"""The server's id at the keeper."""


class Names(Service):
    """``egress`` false: names outside the lease are not looked up."""

    def __init__(
        self, keeper: KeeperClient, folder: Path, *, egress: bool, clock: Clock | None = None
    ) -> None:
        super().__init__("names", clock=clock)
        self.keeper = keeper
        self.folder = folder
        self.egress = egress
        self._leases: dict[str, tuple[list[str], Mapping[str, list[str]]]] = {}
        self._hosts: dict[str, str] = {}

    async def start(self) -> None:
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not (self.folder / "names.json").exists():
            self._write()
        kept = (await self.keeper.list()).get(PROCESS)
        if kept is None or kept["state"] != "running":
            await self.keeper.ask("delete", id=PROCESS)
            await self._launch()

    async def _launch(self) -> None:
        source = str(Path(leasehold.__file__).parent.parent)
        code = (
            "import sys; sys.modules['ssl'] = None; sys.path.insert(0, sys.argv[1]);"
            "from leasehold.deploy.net.nameserver import run; run()"
        )
        # Opened here, on the host: its answers come from where the host's own do.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as upstream:
            await self.keeper.ask(
                "spawn",
                id=PROCESS,
                argv=[sys.executable, "-I", "-S", "-c", code, source, "names.json", GATEWAY, "3"],
                cwd=str(self.folder),
                fds=[upstream.fileno()],
                numbers=[3],
                netns=NODE,
                restart=True,
                output={"path": str(self.folder / "names.log")},
            )

    async def retire(self) -> None:
        await self.keeper.ask("delete", id=PROCESS)

    def set(self, lease: str, members: Iterable[str], names: Mapping[str, list[str]]) -> None:
        """``members`` (addresses) of ``lease`` see ``names``; in effect at once."""
        entry = (sorted(members), {name: sorted(found) for name, found in names.items()})
        if self._leases.get(lease) != entry:
            self._leases[lease] = entry
            self._write()

    def remove(self, lease: str) -> None:
        if self._leases.pop(lease, None) is not None:
            self._write()

    def _write(self) -> None:
        table = {
            "members": {
                address: lease
                for lease, (members, _) in self._leases.items()
                for address in members
            },
            "leases": {lease: names for lease, (_, names) in self._leases.items()},
            "egress": self.egress,
            "upstream": host_resolvers() if self.egress else [],
        }
        temporary = self.folder / ".names.json"
        temporary.write_text(json.dumps(table))
        os.chmod(temporary, 0o644)
        os.replace(temporary, self.folder / "names.json")


def host_resolvers(path: str = "/etc/resolv.conf") -> list[str]:
    """IPv4 addresses of the resolvers this host uses."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            words = [line.split() for line in file]
    except OSError:
        return []
    return [w[1] for w in words if len(w) > 1 and w[0] == "nameserver" and ":" not in w[1]]
