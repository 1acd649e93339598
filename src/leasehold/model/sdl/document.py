"""The SDL as it is written, field by field, before anything refers to anything.

Each ``_read_*`` function takes one place of the file and returns plain data; a mistake is noted
with its position and replaced by something harmless, so that one run finds them all.
"""

from __future__ import annotations

import re

from yaml import ScalarNode

from leasehold.model.resources import U32_MAX
from leasehold.model.sdl import units
from leasehold.model.sdl.nodes import At
from leasehold.model.sdl.profiles import read_compute, read_placements
from leasehold.model.sdl.services import read_service
from leasehold.model.sdl.spec import Deployed, Spec

TOP = (
    "version",
    "services",
    "profiles",
    "deployment",
    "endpoints",
    "include",
    "reclamation",
)
BESIDE_PROFILES = {
    "deployment": "it stands beside profiles, not in it",
    "storage": "a volume is named in the storage of a compute profile",
}
ENDPOINT_NAME = re.compile(r"^[a-z][-_a-z0-9]*\Z")
ELSEWHERE = {
    "volumes": "a volume is named in profiles.compute and mounted in a service's params.storage",
    "networks": "leave it out: services of one placement reach each other by name",
    "deployments": "write deployment",
}
"""Words of other formats that people write at the top, and what to do instead."""


def read(root: At) -> Spec:
    """Everything the file says."""
    spec = Spec(root)
    if not root.is_mapping:
        root.fail("sdl_empty", "an SDL is a mapping with version, services, …", " | ".join(TOP))
        return spec
    top = root.members(TOP, ELSEWHERE)
    spec.version = _read_version(top.get("version"), root)
    for required in ("services", "profiles", "deployment"):
        if required not in top:
            root.fail("missing", f"{required!r} is missing", required, "nothing")
    if at := top.get("services"):
        spec.services_at = at
        for name, place in at.members().items():
            spec.services[name] = read_service(name, place, spec.shared_units)
        if not spec.services and at.is_mapping:
            at.fail("missing", "there is no service", "at least one service", "none")
    if at := top.get("profiles"):
        profiles = at.members(("compute", "placement"), BESIDE_PROFILES)
        for part in ("compute", "placement"):
            if part not in profiles and not at.is_null:
                at.fail("missing", f"{part!r} is missing", f"profiles.{part}", "nothing")
        for name, place in profiles["compute"].members().items() if "compute" in profiles else ():
            spec.computes[name] = read_compute(place)
        if "placement" in profiles:
            spec.placements = read_placements(profiles["placement"])
    if at := top.get("deployment"):
        for service, places in at.members().items():
            spec.deployed_at[service] = places
            if not _has_placement(places):
                continue
            spec.deployment[service] = {
                name: _read_deployed(place) for name, place in places.members().items()
            }
            if not spec.deployment[service] and places.is_mapping:
                places.fail("missing", f"{service!r} is placed nowhere", "a placement", "none")
        if not spec.deployed_at and (at.is_mapping or at.is_null):
            at.fail("missing", "nothing is deployed", "at least one service", "none")
    if at := top.get("endpoints"):
        spec.endpoints = _read_endpoints(at)
    if at := top.get("include"):
        at.texts()
    if at := top.get("reclamation"):
        spec.min_window = _read_reclamation(at)
    return spec


def _read_version(at: At | None, root: At) -> tuple[int, ...]:
    if at is None:
        root.fail("missing", "'version' is missing", '"2.0" or "2.1"', "nothing")
        return (2, 0)
    text = at.text() or ""
    if re.fullmatch(r"2(\.[0-9]{1,4}){0,2}", text):
        major, minor = (*(int(part) for part in text.split(".")), 0)[:2]
        return major, minor
    at.fail("version", f"version {text!r} is not known", '"2.0" or "2.1"', text)
    return (2, 0)


def _has_placement(at: At) -> bool:
    """Not so when the profile stands where the placement should."""
    found = isinstance(at.child("profile"), ScalarNode)
    if found:
        at.wrong("placements by name", f"write {at.path}.PLACEMENT.profile")
    return not found


def _read_deployed(at: At) -> Deployed:
    got = at.members(("profile", "count"))
    if "profile" not in got:
        at.fail("missing", "'profile' is missing", "a compute profile", "nothing")
    if "count" not in got:
        at.fail("missing", "'count' is missing", "≥ 1", "nothing")
    return Deployed(
        at,
        got.get("profile", at),
        (got["profile"].text() or "") if "profile" in got else "",
        got["count"].integer(1, U32_MAX) if "count" in got else 1,
    )


def _read_endpoints(at: At) -> dict[str, At]:
    out = {}
    for name, place in at.members().items():
        if not ENDPOINT_NAME.match(name):
            place.name.fail(
                "endpoint_name",
                f"{name!r} cannot name an endpoint: lower-case letters, digits, '-' and '_', "
                "starting with a letter",
                "a name like my-address",
                name,
            )
        kind_at = place.members(("kind",)).get("kind")
        kind = (kind_at.text() or "") if kind_at else ""
        if kind != "ip":
            place.fail("endpoint_kind", f"unknown kind {kind!r} of endpoint", "ip", kind)
        out[name] = place
    return out


def _read_reclamation(at: At) -> float | None:
    place = at.members(("min_window",)).get("min_window")
    text = (place.text() or "") if place else ""
    window = units.duration(text)
    if window is None or window <= 0:
        (place or at).fail(
            "min_window", "the reclamation window is more than 0", "a duration like 24h", text
        )
        return None
    return window
