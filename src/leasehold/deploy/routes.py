"""Where requests for a workload go: ingress by host name, ports of the node, names in the lease."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from leasehold.deploy.ingress.haproxy import Ingress
from leasehold.deploy.ingress.options import MOST_TRIES, Options
from leasehold.deploy.ingress.table import Server
from leasehold.deploy.net.names import Names
from leasehold.deploy.net.node import NodeNetwork
from leasehold.deploy.node_ports import NodePorts, PortKey
from leasehold.deploy.replica import Replica, State
from leasehold.deploy.settings import DeploySettings
from leasehold.deploy.workload import Workload, exclusive
from leasehold.model.manifest import Expose, ManifestService
from leasehold.model.market import LeaseId

if TYPE_CHECKING:
    from leasehold.deploy.driver import Applied


class Routes:
    """Points ingress, node ports and names at the replicas that should be reached."""

    def __init__(
        self,
        network: NodeNetwork | None,
        ingress: Ingress | None,
        names: Names | None,
        settings: DeploySettings,
        file: Path,
    ) -> None:
        self.network = network
        self.ingress = ingress
        self._names = names
        self.settings = settings
        self.ports = NodePorts(network, settings, file)
        self._targets: dict[str, set[str]] = {}
        self._hosts: dict[str, tuple[frozenset[str], frozenset[str] | None]] = {}

    def allow(self, lease: LeaseId, withheld: Iterable[str], allowed: Iterable[str] | None) -> bool:
        """Which host names may lead to ``lease``: none of ``withheld``, and after a transfer only
        ``allowed``. True when that is news."""
        rule = (frozenset(withheld), None if allowed is None else frozenset(allowed))
        before = self._hosts.get(str(lease), (frozenset(), None))
        self._hosts[str(lease)] = rule
        return rule != before

    def _may_lead(self, lease: LeaseId, host: str) -> bool:
        withheld, allowed = self._hosts.get(str(lease), (frozenset(), None))
        return host in allowed if allowed is not None else host not in withheld

    # -- what a tenant is told --------------------------------------------------------------------

    def uris(self, workload: Workload) -> list[str]:
        """URLs and node ports of a workload."""
        found = []
        for service in workload.services:
            for expose in service.exposes:
                if expose.ingress:
                    hosts = workload.hosts(service, expose, self.settings.static_domain)
                    mine = (host for host in hosts if self._may_lead(workload.lease, host))
                    found += [self._url(host) for host in mine]
                elif expose.global_:
                    published = self.ports.published(_key(workload, service, expose))
                    if published is not None:
                        host = published.front or self.settings.public_host
                        port = published.front_port or published.port
                        found.append(f"{expose.proto.lower()}://{host}:{port}")
        return found

    def _url(self, host: str) -> str:
        ingress = self.ingress
        if ingress is not None and host in ingress.secure:
            return f"https://{host}" + ("" if ingress.tls_port == 443 else f":{ingress.tls_port}")
        port = ingress.port if ingress else 80
        return f"http://{host}" + ("" if port == 80 else f":{port}")

    def hosts(self, workload: Workload) -> list[str]:
        """The host names that lead to a workload."""
        return [
            host
            for service in workload.services
            for expose in service.exposes
            if expose.ingress
            for host in workload.hosts(service, expose, self.settings.static_domain)
            if self._may_lead(workload.lease, host)
        ]

    def node_ports(self, workload: Workload) -> list[dict[str, object]]:
        """The forwarded ports, as the status route of the market's API lists them."""
        return [
            {
                "host": self.settings.public_host,
                "port": expose.port,
                "externalPort": number,
                "proto": expose.proto,
                "name": service.name,
            }
            for service in workload.services
            for expose in service.exposes
            if not expose.ingress and not expose.ip
            if (number := self.ports.number(_key(workload, service, expose))) is not None
        ]

    def leased_addresses(self, workload: Workload) -> dict[str, list[dict[str, object]]]:
        """By service, the leased addresses that lead to it, as the market's API lists them."""
        found: dict[str, list[dict[str, object]]] = {}
        for service in workload.services:
            for expose in service.exposes:
                published = self.ports.published(_key(workload, service, expose))
                if expose.ip and published is not None:
                    found.setdefault(service.name, []).append(
                        {
                            "Port": expose.port,
                            "ExternalPort": published.front_port,
                            "Protocol": expose.proto,
                            "IP": published.front,
                        }
                    )
        return found

    # -- moving -----------------------------------------------------------------------------------

    async def names(self, applied: Applied, replicas: Iterable[Replica]) -> None:
        """Let replicas of the lease find one another, as soon as they run."""
        if self._names is None:
            return
        table: dict[str, list[str]] = {}
        members = []
        for replica in replicas:
            if replica.state is not State.RUNNING or not replica.address:
                continue
            members.append(replica.address)
            if applied.revisions.get(replica.service) == replica.revision:
                table.setdefault(replica.service, []).append(replica.address)
        self._names.set(str(applied.workload.lease), members, table)

    async def move(self, applied: Applied, replicas: Iterable[Replica]) -> None:
        """Point everything at the running replicas of ``applied``, and nothing elsewhere."""
        workload = applied.workload
        serving: dict[str, list[Replica]] = {}
        everything = list(replicas)
        for replica in everything:
            if (
                replica.state is State.RUNNING
                and applied.revisions.get(replica.service) == replica.revision
            ):
                serving.setdefault(replica.service, []).append(replica)
        await self.names(applied, everything)
        used = set()
        named: dict[PortKey, Expose] = {}
        reached: dict[PortKey, str] = {}
        for service in workload.services:
            up = serving.get(service.name, [])
            for expose in service.exposes:
                if expose.ingress:
                    key = target(workload.lease, service, expose)
                    used.add(key)
                    await self._move_ingress(key, workload, service, expose, up)
                elif expose.global_:
                    port = _key(workload, service, expose)
                    named[port] = expose
                    if up:
                        reached[port] = up[0].address
        await self.ports.move(str(workload.lease), named, reached)
        await self._forget_targets(str(workload.lease), keep=used)

    async def _move_ingress(
        self,
        key: str,
        workload: Workload,
        service: ManifestService,
        expose: Expose,
        up: list[Replica],
    ) -> None:
        if self.ingress is None:
            return
        hosts = workload.hosts(service, expose, self.settings.static_domain)
        await self.ingress.point(
            key,
            hosts=[host for host in hosts if self._may_lead(workload.lease, host)],
            servers=[Server(replica.address, expose.port) for replica in up],
            options=options(service, expose),
        )
        self._targets.setdefault(str(workload.lease), set()).add(key)

    async def _forget_targets(self, lease: str, *, keep: set[str]) -> None:
        known = self._targets.setdefault(lease, set())
        if self.ingress is not None:
            known |= {key for key in self.ingress.table.targets if key.startswith(f"{lease} ")}
            await self.ingress.remove(known - keep)
        self._targets[lease] = keep

    async def forget(self, lease: LeaseId) -> None:
        """Nothing leads to the lease any more."""
        await self._forget_targets(str(lease), keep=set())
        self._targets.pop(str(lease), None)
        self._hosts.pop(str(lease), None)
        await self.ports.move(str(lease), {}, {})
        if self._names is not None:
            self._names.remove(str(lease))


def target(lease: LeaseId, service: ManifestService, expose: Expose) -> str:
    """The name of one ingress port in the proxy's table."""
    return f"{lease} {service.name} {expose.port}"


def options(service: ManifestService, expose: Expose) -> Options:
    """What the manifest says of requests; what it leaves out is the market's default.

    Requests for a service with volumes wait while it is replaced: its old replica ends first.
    """
    given, default = expose.http_options, Options()
    return Options(
        max_body=given.max_body_size or default.max_body,
        read_timeout_ms=given.read_timeout or default.read_timeout_ms,
        send_timeout_ms=given.send_timeout or default.send_timeout_ms,
        tries=MOST_TRIES if exclusive(service) else given.next_tries or default.tries,
        next_timeout_ms=0 if exclusive(service) else given.next_timeout,
        cases=tuple(given.next_cases or default.cases),
        replicas=1 if service.count <= 1 else 2,
    )


def _key(workload: Workload, service: ManifestService, expose: Expose) -> PortKey:
    return PortKey(str(workload.lease), service.name, expose.proto, expose.port, expose.ip)
