"""May this manifest be accepted? Everything against it, in the order of importance.

Shape, version hash, match with what was leased, host names, what the runtime can do. The answer
carries the code of the first stage that failed and the violations of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from leasehold.core import metrics
from leasehold.core.errors import Kind, LeaseholdError, Violation
from leasehold.manifest import crosscheck
from leasehold.manifest.manager import MarketData
from leasehold.manifest.ports import Capabilities
from leasehold.model import shape
from leasehold.model.hostname import blocked_by
from leasehold.model.manifest import Manifest, ManifestGroup

REFUSED = metrics.counter(
    "leasehold_manifest_refused_total",
    "manifests refused, by the first check that failed",
    ["check"],
)

TEXTS = {
    "invalid_manifest": "invalid manifest",
    "manifest_version": "manifest version validation failed",
    # The words tenants' consoles look for.
    "manifest_cross_validation": "manifest cross-validation error",
    "hostname_required": "hostname required",
    "hostname_blocked": "hostname blocked",
    "unsupported": "not supported by this provider",
    "hostname_taken": "hostname taken",
}


class Stage(msgspec.Struct, frozen=True):
    """The violations of one check."""

    code: str
    violations: list[Violation]


def expected_hash(event: tuple[int, str], queried: tuple[int, str]) -> str:
    """The version hash that counts: the newer by block height, of the query when equally new.

    A market that does not say the height of its answer (0) is believed: it was asked just now.
    """
    return event[1] if event[0] > queried[0] > 0 else queried[1]


def check(
    manifest: Manifest,
    hash: str,
    expected: str,
    data: MarketData,
    *,
    require_hosts: bool = False,
    blocked: Sequence[str] = (),
    capabilities: Capabilities | None = None,
) -> list[Stage]:
    """Every stage that found something; empty when the manifest may go on."""
    stages = [
        Stage("invalid_manifest", shape.violations(manifest)),
        Stage("manifest_version", list(_version(hash, expected))),
        Stage(
            "manifest_cross_validation",
            crosscheck.violations(manifest, [group.spec for group in data.deployment.groups]),
        ),
    ]
    local = local_groups(manifest, data)
    if require_hosts:
        stages.append(Stage("hostname_required", list(_hosts_required(local))))
    stages.append(Stage("hostname_blocked", list(_blocked(local, blocked))))
    if capabilities is not None:
        stages.append(Stage("unsupported", list(_unsupported(local, data, capabilities))))
    return [stage for stage in stages if stage.violations]


def refusal(stages: Sequence[Stage], *, kind: Kind = Kind.INVALID) -> LeaseholdError:
    """The error for at least one failed stage."""
    first = stages[0]
    REFUSED.labels(first.code).inc()
    violations = [violation for stage in stages for violation in stage.violations]
    head = first.violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return LeaseholdError(
        first.code,
        f"{TEXTS[first.code]}: {head.message}{more}",
        kind=kind,
        path=head.path,
        expected=head.expected,
        got=head.got,
        violations=violations,
    )


def local_groups(manifest: Manifest, data: MarketData) -> list[tuple[int, ManifestGroup]]:
    """The groups of ``manifest`` that we hold a lease of, with their positions."""
    names = {data.groups[lease.id.gseq].spec.name for lease in data.leases}
    return [(at, group) for at, group in enumerate(manifest) if group.name in names]


def _version(hash: str, expected: str) -> Iterator[Violation]:
    if hash != expected:
        yield Violation(
            "hash",
            "not the manifest that is on the market: update the deployment or send its manifest",
            "",
            expected,
            hash,
        )


def _hosts_required(groups: list[tuple[int, ManifestGroup]]) -> Iterator[Violation]:
    for at, group in groups:
        for position, service in enumerate(group.all_services):
            for place, expose in enumerate(service.exposes):
                if expose.ingress and not expose.hosts:
                    yield Violation(
                        "host_required",
                        f"service {service.name!r} is served by HTTP ingress and names no host",
                        f"[{at}].services[{position}].expose[{place}].hosts",
                        "at least one host",
                        "none",
                    )


def _blocked(
    groups: list[tuple[int, ManifestGroup]], blocked: Sequence[str]
) -> Iterator[Violation]:
    for at, group in groups:
        for host in group.ingress_hosts():
            rule = blocked_by(host, blocked)
            if rule is not None:
                yield Violation(
                    "host_blocked",
                    f"this provider does not serve {host!r}",
                    f"[{at}]",
                    f"a host not blocked by {rule}",
                    host,
                )


def _unsupported(
    groups: list[tuple[int, ManifestGroup]], data: MarketData, capabilities: Capabilities
) -> Iterator[Violation]:
    specs = {group.spec.name: group.spec for group in data.deployment.groups}
    for at, group in groups:
        spec = specs.get(group.name)
        for violation in capabilities.unsupported(group, spec) if spec else ():
            path = f"[{at}].{violation.path}" if violation.path else f"[{at}]"
            yield msgspec.structs.replace(violation, path=path)
