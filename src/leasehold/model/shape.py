"""Rules a manifest must keep whatever was leased: the same ones tenants' tools check.

:func:`violations` lists everything that is wrong, in the order in which the original would have
stopped at the first. Where the original let something through that can never run (two services of
one name, a name of more than 63 characters), it is refused here, before it is accepted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from leasehold.core.errors import Violation
from leasehold.model.hostname import is_subdomain
from leasehold.model.manifest import Expose, Manifest, ManifestGroup, ManifestService

SERVICE_NAME = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?\Z")
MAX_NAME = 63
"""Longest service name: it becomes a DNS label."""

ENV_NAME = re.compile(r"^[-._a-zA-Z][-._a-zA-Z0-9]*\Z")
MAX_HOST = 255
MAX_SERVICES = 256
"""Services of one group."""


def is_env_name(name: str) -> bool:
    """What may stand before the ``=`` of an environment variable."""
    return ENV_NAME.match(name) is not None and not name.startswith("..") and name != "."


def violations(manifest: Manifest) -> list[Violation]:
    """Everything wrong with the shape of ``manifest``; empty when it may go on."""
    return list(_check(manifest))


def _check(manifest: Manifest) -> Iterator[Violation]:
    if not manifest:
        yield Violation("manifest_empty", "the manifest has no group", "", "at least one", "none")
        return
    hosts: dict[str, str] = {}
    names: set[str] = set()
    for at, group in enumerate(manifest):
        path = f"[{at}]"
        yield from _check_group(group, path, hosts)
        if group.name in names:
            yield Violation(
                "group_duplicate",
                f"two groups are called {group.name!r}",
                f"{path}.name",
                "unique names",
                group.name,
            )
        names.add(group.name)
    if not any(
        expose.global_
        for group in manifest
        for service in group.all_services
        for expose in service.exposes
    ):
        yield Violation(
            "no_global_service",
            "no service can be reached from outside: expose at least one globally",
            "",
            "one expose with global: true",
            "none",
        )


def _check_group(group: ManifestGroup, path: str, hosts: dict[str, str]) -> Iterator[Violation]:
    services = group.all_services
    if not services:
        yield Violation(
            "group_empty",
            f"group {group.name!r} has no service",
            f"{path}.services",
            "at least one",
            "none",
        )
    if len(services) > MAX_SERVICES:
        yield Violation(
            "too_many_services",
            f"group {group.name!r} has {len(services)} services",
            f"{path}.services",
            f"≤ {MAX_SERVICES}",
            str(len(services)),
        )
        return
    ordered = [service.name for service in services]
    if ordered != sorted(ordered):
        yield Violation(
            "services_unsorted",
            f"services of group {group.name!r} are not sorted by name",
            f"{path}.services",
            ", ".join(sorted(ordered)),
            ", ".join(ordered),
        )
    seen: set[str] = set()
    for at, service in enumerate(services):
        where = f"{path}.services[{at}]"
        if service.name in seen:
            yield Violation(
                "service_duplicate",
                f"two services of group {group.name!r} are called {service.name!r}",
                f"{where}.name",
                "unique names",
                service.name,
            )
        seen.add(service.name)
        yield from _check_service(service, where, hosts)


def _check_service(
    service: ManifestService, path: str, hosts: dict[str, str]
) -> Iterator[Violation]:
    if not SERVICE_NAME.match(service.name) or len(service.name) > MAX_NAME:
        yield Violation(
            "service_name",
            f"{service.name!r} cannot be a service's name",
            f"{path}.name",
            f"at most {MAX_NAME} of a-z 0-9 -, starting with a letter, not ending with -",
            service.name[:100],
        )
    if not service.image:
        yield Violation(
            "image_missing",
            f"service {service.name!r} has no image",
            f"{path}.image",
            "an image reference",
            "nothing",
        )
    yield from _check_resources(service, f"{path}.resources")
    for at, entry in enumerate(service.env or ()):
        name = entry.partition("=")[0]
        if not is_env_name(name):
            yield Violation(
                "env_name",
                f"{name[:100]!r} cannot be the name of an environment variable",
                f"{path}.env[{at}]",
                "NAME or NAME=value",
                name[:100],
            )
    keys = [_order(expose) for expose in service.exposes]
    if keys != sorted(keys):
        yield Violation(
            "expose_unsorted",
            f"the exposes of service {service.name!r} are not in order",
            f"{path}.expose",
            "by service, port, proto, global first",
        )
    for at, expose in enumerate(service.exposes):
        yield from _check_expose(expose, f"{path}.expose[{at}]", hosts)


def _order(expose: Expose) -> tuple[str, int, str, bool]:
    return expose.service, expose.port, expose.proto, not expose.global_


def _check_resources(service: ManifestService, path: str) -> Iterator[Violation]:
    given = service.resources
    if given.id < 1:
        yield Violation(
            "resource_id",
            f"service {service.name!r} names no resource unit",
            f"{path}.id",
            "≥ 1",
            str(given.id),
        )
    parts = {
        "cpu": given.cpu,
        "gpu": given.gpu,
        "memory": given.memory,
        "storage": given.storage,
        "endpoints": given.endpoints,
    }
    for part, value in parts.items():
        if value is None:
            yield Violation(
                "resource_missing",
                f"service {service.name!r} does not say its {part}",
                f"{path}.{part}",
                part,
                "nothing",
            )


def _check_expose(expose: Expose, path: str, hosts: dict[str, str]) -> Iterator[Violation]:
    if not 1 <= expose.port <= 65535:
        yield Violation(
            "port", f"{expose.port} is no port", f"{path}.port", "1..65535", str(expose.port)
        )
    if expose.external_port > 65535:
        yield Violation(
            "port",
            f"{expose.external_port} is no port",
            f"{path}.externalPort",
            "0..65535",
            str(expose.external_port),
        )
    if expose.proto not in ("TCP", "UDP"):
        yield Violation(
            "proto",
            f"unknown protocol {expose.proto[:20]!r}",
            f"{path}.proto",
            "TCP | UDP",
            expose.proto[:20],
        )
    for at, host in enumerate(expose.hosts or ()):
        where = f"{path}.hosts[{at}]"
        if len(host) > MAX_HOST or not is_subdomain(host):
            yield Violation(
                "host",
                f"{host[:100]!r} is not a host name",
                where,
                "a lower-case DNS name without wildcard",
                host[:100],
            )
        elif host in hosts:
            yield Violation(
                "host_duplicate",
                f"{host!r} is asked for twice",
                where,
                f"once, as at {hosts[host]}",
                host,
            )
        else:
            hosts[host] = where
