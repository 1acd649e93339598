"""Ports of the host and leased addresses: which leads to what, kept while a manifest names it.

A number or an address belongs to an *exposed port* from the first time it leads somewhere until the
manifest names it no more, whether a replica runs or not: what a tenant was told stays true. All of
it is in one file, replaced before anything is told.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.deploy.net.node import NodeNetwork
from leasehold.deploy.net.rules import Publication
from leasehold.deploy.settings import DeploySettings
from leasehold.model.manifest import Expose
from leasehold.model.market import LeaseId


class PortKey(NamedTuple):
    """An exposed port. ``ip`` names the leased address it is on; empty: the host's own."""

    lease: str
    service: str
    protocol: str
    port: int
    ip: str


class NodePorts:
    """Publishes ports on ``network`` (None: none are) and remembers them in ``file``."""

    def __init__(self, network: NodeNetwork | None, settings: DeploySettings, file: Path) -> None:
        self.network = network
        self.settings = settings
        self._file = file
        self._numbers: dict[PortKey, int] = {}
        self._fronts: dict[tuple[str, str], str] = {}
        self._published: dict[PortKey, Publication] = {}

    def number(self, key: PortKey) -> int | None:
        """The port of the host that is ``key``'s."""
        return self._numbers.get(key)

    def published(self, key: PortKey) -> Publication | None:
        """What leads to ``key`` now; None while nothing answers there."""
        return self._published.get(key)

    async def move(
        self, lease: str, named: Mapping[PortKey, Expose], serving: Mapping[PortKey, str]
    ) -> None:
        """Lead the ports a lease names to the addresses that serve them, and none elsewhere."""
        for key in [key for key in self._numbers if key.lease == lease and key not in named]:
            del self._numbers[key]
        ips = {key.ip for key in named}
        for mine in [mine for mine in self._fronts if mine[0] == lease and mine[1] not in ips]:
            del self._fronts[mine]
        before = {key: p for key, p in self._published.items() if key.lease == lease}
        kept = {key: p for key, p in self._published.items() if key.lease != lease}
        for key, address in serving.items():
            kept[key] = self._publication(key, named[key], address, kept)
        gone = [p for key, p in before.items() if key not in serving]
        self._published = kept
        if before or serving:
            self._save()
        if self.network is not None:
            await self.network.unpublish((p.protocol, p.port) for p in gone)
            await self.network.publish(kept[key] for key in serving)

    def _publication(
        self, key: PortKey, expose: Expose, address: str, others: Mapping[PortKey, Publication]
    ) -> Publication:
        front, front_port = "", 0
        if key.ip:
            front, front_port = self._front(key), expose.outside_port
            for other, p in others.items():
                if (p.protocol, p.front, p.front_port) == (key.protocol.lower(), front, front_port):
                    raise LeaseholdError(
                        "port_taken",
                        f"port {front_port} of {key.ip!r} leads to service {other.service!r}",
                        kind=Kind.CONFLICT,
                        path=f"services.{key.service}.expose",
                        got=front_port,
                    )
        number = self._numbers.get(key) or self._free_number(key.protocol)
        self._numbers[key] = number
        return Publication(key.protocol.lower(), number, address, expose.port, front, front_port)

    async def transfer(self, lease: LeaseId, names: Sequence[str]) -> list[str]:
        """Give ``lease`` the addresses its owner's other lease has under these names.

        The other one gets those of ``lease`` for them, so each keeps as many as it pays for. All
        are exchanged or none; what moved is returned.
        """
        here = str(lease)
        exchanged: dict[tuple[str, str], str] = {}
        for name in dict.fromkeys(names):
            there = self._held_elsewhere(lease, name)
            mine = self._fronts.get((here, name)) or self._free_address(name)
            exchanged |= {(here, name): self._fronts[there, name], (there, name): mine}
        self._fronts |= exchanged
        moved = {
            key: replace(p, front=exchanged[key.lease, key.ip])
            for key, p in self._published.items()
            if (key.lease, key.ip) in exchanged
        }
        self._published |= moved
        self._save()
        if self.network is not None:
            await self.network.unpublish((p.protocol, p.port) for p in moved.values())
            await self.network.publish(moved.values())
        return list(dict.fromkeys(names))

    def _held_elsewhere(self, lease: LeaseId, name: str) -> str:
        others = [
            other
            for other, held in self._fronts
            if held == name and other != str(lease) and LeaseId.parse(other).owner == lease.owner
        ]
        if len(others) == 1:
            return others[0]
        raise LeaseholdError(
            "endpoint_not_held" if not others else "endpoint_ambiguous",
            f"none of your other leases here has an address {name!r}"
            if not others
            else f"several of your leases here have an address {name!r}",
            kind=Kind.CONFLICT,
            path="endpoints_to_migrate",
            expected="one other lease",
            got=", ".join(others) or name,
        )

    def _front(self, key: PortKey) -> str:
        """The leased address of that name: one for all ports of the lease that name it."""
        mine = key.lease, key.ip
        if mine not in self._fronts:
            self._fronts[mine] = self._free_address(key.ip)
        return self._fronts[mine]

    def _free_address(self, name: str) -> str:
        used = set(self._fronts.values())
        for address in self.settings.leased_ips:
            if address not in used:
                return address
        raise LeaseholdError(
            "no_leased_ip",
            f"all {len(self.settings.leased_ips)} leased addresses are in use",
            kind=Kind.UNAVAILABLE,
            path="deploy.leased_ips",
            got=name,
        )

    def _free_number(self, protocol: str) -> int:
        first, last = self.settings.node_ports
        used = {n for key, n in self._numbers.items() if key.protocol == protocol}
        for number in range(first, last + 1):
            if number not in used:
                return number
        raise LeaseholdError(
            "node_ports_exhausted",
            f"all node ports {first}-{last} are in use",
            kind=Kind.UNAVAILABLE,
            path="deploy.node_ports",
        )

    def restore(self) -> list[Publication]:
        """What was published when the provider last ran."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = json.loads(self._file.read_text())
            if isinstance(found, list):
                found = _from_rows(found)
            self._numbers = {PortKey(*key): number for *key, number in found["numbers"]}
            self._fronts = {(lease, name): ip for lease, name, ip in found["fronts"]}
            for lease, service, protocol, port, ip, address, target, front_port in found[
                "published"
            ]:
                key = PortKey(lease, service, protocol, port, ip)
                front = self._fronts.get((lease, ip), "")
                self._published[key] = Publication(
                    protocol.lower(), self._numbers[key], address, target, front, front_port
                )
        return list(self._published.values())

    def _save(self) -> None:
        found = {
            "numbers": [[*key, number] for key, number in self._numbers.items()],
            "fronts": [[*of, ip] for of, ip in self._fronts.items()],
            "published": [
                [*key, p.address, p.target, p.front_port] for key, p in self._published.items()
            ],
        }
        temporary = self._file.with_suffix(".new")
        with temporary.open("w") as file:
            json.dump(found, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._file)


def _from_rows(rows: Iterable[list[object]]) -> dict[str, list[list[object]]]:
    """The file as it was before numbers were kept for what does not run."""
    found: dict[str, list[list[object]]] = {"numbers": [], "fronts": [], "published": []}
    for lease, service, protocol, port, number, address, target, *leased in rows:
        ip, front, front_port = leased or ("", "", 0)
        found["numbers"].append([lease, service, protocol, port, ip, number])
        if front and [lease, ip, front] not in found["fronts"]:
            found["fronts"].append([lease, ip, front])
        found["published"].append([lease, service, protocol, port, ip, address, target, front_port])
    return found
