"""The tenant's YAML: what it becomes on the market (groups) and at the provider (manifest).

``nodes``     YAML with positions, within bounds
``units``     quantities: cores, bytes, prices, durations
``spec``      the file as data
``document``  reads it: top level, deployment, endpoints
``services``  … its services
``profiles``  … its compute and placement profiles
``checks``    what one part says about another
``build``     groups and manifest, with everything that changes the hash

    sdl = load(text)            # raises LeaseholdError with every violation
    sdl.groups(), sdl.manifest(), sdl.hash
"""

from __future__ import annotations

import re
from functools import cached_property

from leasehold.core.errors import LeaseholdError, Violation
from leasehold.model import manifest as manifests
from leasehold.model import shape
from leasehold.model.resources import GroupSpec, check_groups
from leasehold.model.sdl import build, checks, document
from leasehold.model.sdl.nodes import At, Document, compose
from leasehold.model.sdl.spec import Spec


class SDL:
    """A valid SDL. Make it with :func:`load`."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec

    @property
    def version(self) -> str:
        return ".".join(str(part) for part in self._spec.version)

    @property
    def min_window(self) -> float | None:
        """Least notice before a provider may reclaim the lease, in seconds; None: no say."""
        return self._spec.min_window

    @cached_property
    def _groups(self) -> list[GroupSpec]:
        return build.groups(self._spec)

    @cached_property
    def _manifest(self) -> manifests.Manifest:
        return build.manifest(self._spec)

    def groups(self) -> list[GroupSpec]:
        """What is put on the market: one group a placement, sorted by name."""
        return self._groups

    def manifest(self) -> manifests.Manifest:
        """What is sent to the provider."""
        return self._manifest

    @cached_property
    def hash(self) -> bytes:
        """The version hash of the manifest: 32 bytes."""
        return manifests.version_hash(self._manifest)


def load(text: str) -> SDL:
    """Read an SDL; LeaseholdError lists every violation with line, column and path."""
    sdl, violations = _read(text)
    if violations:
        raise LeaseholdError.of(violations)
    assert sdl is not None
    return sdl


def validate(text: str) -> list[Violation]:
    """Every violation of an SDL, in the order of the file; empty when it can be deployed."""
    try:
        return _read(text)[1]
    except LeaseholdError as error:
        return list(error.violations) or [
            Violation(error.code, error.message, error.path, error.expected, error.got)
        ]


def _read(text: str) -> tuple[SDL | None, list[Violation]]:
    node = compose(text)
    notes = Document()
    if node is None:
        return None, [Violation("sdl_empty", "the file is empty", expected="an SDL", line=1)]
    spec = document.read(At(notes, node, ""))
    checks.check(spec)
    sdl = SDL(checks.resolved(spec))
    _check_built(sdl, spec)
    found = sorted(notes.violations, key=lambda v: (v.line or 0, v.column or 0))
    return None if found else sdl, found


def _check_built(sdl: SDL, spec: Spec) -> None:
    """The market's limits and the manifest's rules, noted at the place that causes them.

    Unless something is wrong there already, of which this would be the consequence.
    """
    if not sdl.groups():
        return
    found = [
        *((_place_of_group(each.path, sdl, spec), each) for each in check_groups(sdl.groups())),
        *(
            (_place_of_service(each.path, sdl, spec), each)
            for each in shape.violations(sdl.manifest())
            if each.code != "resource_missing"
        ),
    ]
    whole = spec.services_at or spec.at
    placed = sdl._spec.deployment
    all_said = whole.said or not all(placed.get(name) for name in spec.deployed_at)
    first = [(at or whole, each) for at, each in found if not (at.said if at else all_said)]
    for at, each in first:
        at.fail(each.code, each.message, each.expected, each.got)


_IN_GROUP = re.compile(
    r"groups\[(\d+)\](?:\.resources\[(\d+)\]"
    r"\.(?:(price|count)|resource\.(\w+)(?:\[(\d+)\])?))?"
)


def _place_of_group(path: str, sdl: SDL, spec: Spec) -> At | None:
    match = _IN_GROUP.match(path)
    if match is None:
        # All groups together: their coins differ, or one could not be read.
        prices = [at for place in spec.placements.values() for at in place.pricing_at.values()]
        return next((at for at in prices if at.said), prices[0])
    group = sdl.groups()[int(match[1])]
    place = spec.placements[group.name]
    if match[2] is None:
        return place.at
    unit = group.resources[int(match[2])].resource
    profile = next(
        spec.deployment[service.name][group.name].profile
        for found in sdl.manifest()
        for service in found.all_services
        if found.name == group.name and service.resources.id == unit.id
    )
    compute = spec.computes[profile]
    if match[3] == "price":
        return place.pricing_at[profile]
    if match[4] == "storage" and match[5]:
        return compute.volume_at[unit.volumes[int(match[5])].name]
    return compute.parts.get(match[4], compute.at)


def _place_of_service(path: str, sdl: SDL, spec: Spec) -> At | None:
    match = re.match(r"\[(\d+)\]\.services\[(\d+)\]", path)
    if match is None:
        return None
    service = sdl.manifest()[int(match[1])].all_services[int(match[2])]
    return spec.services[service.name].at
