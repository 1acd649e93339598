"""SDL files and what they must become; and files that must be refused, each for its reason."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.model import sdl

DATA = Path(__file__).parents[2] / "data" / "sdl"
VALID = sorted(DATA.glob("valid/*/*/sdl.yaml"))

REASONS = {
    "count-zero": ("out_of_range", "deployment.web.akash.count", 32),
    "credentials-missing-host": ("credentials", "services.web.credentials", 8),
    "empty-image": ("image_missing", "services.web.image", 6),
    "endpoint-not-used": ("endpoint_unused", "endpoints.myendpoint", 34),
    "invalid-port": ("out_of_range", "services.web.expose[0].port", 8),
    "missing-deployment": ("missing", "", 3),
    "missing-pricing": ("pricing_missing", "profiles.placement.akash", 24),
    "negative-cpu": ("cpu", "profiles.compute.web.resources.cpu.units", 16),
    "persistent-without-mount": ("mount_missing", "services.web", 6),
    "port-too-high": ("out_of_range", "services.web.expose[0].port", 8),
    "unknown-field": ("unknown_key", "unknown_field", 4),
    "v2.1-reclamation-bad-window": ("min_window", "reclamation.min_window", 36),
}


@pytest.mark.parametrize("path", VALID, ids=lambda p: f"{p.parts[-3]}-{p.parts[-2]}")
def test_becomes_exactly_the_expected_groups_and_manifest(path: Path) -> None:
    loaded = sdl.load(path.read_text())
    groups = json.loads(msgspec.json.encode(loaded.groups()))
    manifest = json.loads(msgspec.json.encode(loaded.manifest()))
    assert groups == json.loads((path.parent / "group-specs.json").read_text())
    assert manifest == json.loads((path.parent / "manifest.json").read_text())


@pytest.mark.parametrize("name", sorted(p.stem for p in DATA.glob("invalid/*.yaml")))
def test_is_refused_for_the_right_reason(name: str) -> None:
    found = sdl.validate((DATA / "invalid" / f"{name}.yaml").read_text())
    assert [(v.code, v.path, v.line) for v in found] == [REASONS[name]]


def test_every_mistake_is_listed_at_once_with_its_place() -> None:
    text = (DATA / "valid/v2.0/simple/sdl.yaml").read_text()
    text = text.replace("image: nginx", "imagee: nginx").replace("port: 80", "port: 0")
    text = text.replace('units: "100m"', "units: much").replace("count: 2", "count: two")
    with pytest.raises(LeaseholdError) as caught:
        sdl.load(text)
    assert [v.code for v in caught.value.violations] == [
        "unknown_key",
        "image_missing",
        "out_of_range",
        "cpu",
        "type",
    ]
    assert all(v.line and v.column for v in caught.value.violations)
    assert "did you mean 'image'" in caught.value.violations[0].message
