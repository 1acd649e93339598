# ruff: noqa: E501
"""A manifest must be exactly what was leased: any change of resources, counts or endpoints is
refused, any other allowed change is accepted."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from leasehold.manifest import crosscheck
from leasehold.model import manifest as m
from leasehold.model import sdl, shape

SDL = """
version: "2.1"
services:
  api:
    image: api
    expose: [{port: 3000, to: [{service: web}]}, {port: 90, proto: udp, to: [{global: true}]}]
  web:
    image: web
    expose: [{port: 80, accept: [a.com], to: [{global: true}]}, {port: 81, to: [{global: true, ip: addr}]}]
    params: {storage: {data: {mount: /data}}}
profiles:
  compute:
    big:
      resources:
        cpu: {units: 1, attributes: {arch: amd64}}
        memory: {size: 1Gi}
        storage: [{size: 1Gi}, {name: data, size: 2Gi, attributes: {persistent: true, class: beta2}}]
        gpu: {units: 1, attributes: {vendor: {nvidia: [{model: a100}]}}}
    small: {resources: {cpu: {units: 100m}, memory: {size: 64Mi}, storage: {size: 64Mi}}}
  placement:
    here:
      pricing: {big: {denom: uakt, amount: 5}, small: {denom: uakt, amount: 5}}
deployment:
  api: {here: {profile: small, count: 3}}
  web: {here: {profile: big, count: 2}}
endpoints: {addr: {kind: ip}}
"""
LOADED = sdl.load(SDL)
MANIFEST: list[dict[str, Any]] = json.loads(m.canonical(LOADED.manifest()))
API, WEB = MANIFEST[0]["services"]


def check(manifest: list[dict[str, Any]]) -> list[str]:
    decoded = m.decode(json.dumps(manifest).encode())
    return [v.code for v in crosscheck.violations(decoded, LOADED.groups())]


def test_what_was_leased_passes() -> None:
    assert check(MANIFEST) == []
    assert shape.violations(LOADED.manifest()) == []


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every leaf below ``value``."""
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in paths(v, (*prefix, k))]
    if isinstance(value, list):
        return [p for i, v in enumerate(value) for p in paths(v, (*prefix, i))]
    return [prefix]


def leased(path: tuple[Any, ...]) -> bool:
    """Whether a leaf of a service is a resource, a count or decides over an endpoint."""
    if path[0] == "count":
        return True
    return path[0] == "resources" and path[1] != "endpoints"


ALL = [(s, p) for s, service in enumerate((API, WEB)) for p in paths(service)]
LEASED = [(s, p) for s, p in ALL if leased(p)]


def put(manifest: list[dict[str, Any]], service: int, path: tuple[Any, ...], value: Any) -> None:
    target = manifest[0]["services"][service]
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value


@given(st.sampled_from(LEASED), st.integers(1, 10**6), st.booleans())
def test_any_change_of_resources_or_counts_is_refused(
    place: tuple[int, tuple[Any, ...]], by: int, up: bool
) -> None:
    changed = copy.deepcopy(MANIFEST)
    service, path = place
    old: Any = (API, WEB)[service]
    for step in path:
        old = old[step]
    if isinstance(old, int):
        new: Any = old + by
    elif old.isdigit():
        new = str(int(old) + by if up else max(0, int(old) - by))
        if new == old:
            new = str(int(old) + 1)
    else:
        new = old + "x"
    put(changed, service, path, new)
    assert check(changed) != []


@given(st.data())
def test_volumes_attributes_and_exposes_may_not_come_or_go(data: st.DataObject) -> None:
    changed = copy.deepcopy(MANIFEST)
    service = changed[0]["services"][data.draw(st.integers(0, 1))]
    lists = [
        service["resources"]["storage"],
        service["expose"],
        service["resources"]["cpu"].setdefault("attributes", []),
    ]
    target = data.draw(st.sampled_from(lists))
    if target and data.draw(st.booleans()):
        gone = target.pop(data.draw(st.integers(0, len(target) - 1)))
        if "global" in gone and not gone["global"]:
            return  # a link between services is free
    elif target is service["expose"]:
        target.append({**WEB["expose"][0], "port": 8080})
    elif target is lists[0]:
        target.append({"name": "more", "size": {"val": "1"}})
    else:
        target.append({"key": "x", "value": "y"})
    assert check(changed) != []


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "image": st.text(min_size=1, max_size=20),
            "command": st.none() | st.lists(st.text(max_size=5), max_size=3),
            "args": st.none() | st.lists(st.text(max_size=5), max_size=3),
            "env": st.none() | st.lists(st.from_regex(r"[A-Z]{1,8}=[a-z]{0,5}", fullmatch=True)),
            "credentials": st.none() | st.just({"host": "h", "username": "u", "password": "p"}),
            "params": st.none() | st.just({"storage": None}),
        },
    ),
    st.lists(st.from_regex(r"[a-z]{1,8}\.com", fullmatch=True), unique=True, max_size=3),
    st.integers(1, 10**6),
)
def test_everything_else_is_free(changes: dict[str, Any], hosts: list[str], size: int) -> None:
    changed = copy.deepcopy(MANIFEST)
    for service in changed[0]["services"]:
        service.update(changes)
    changed[0]["services"][1]["expose"][0]["hosts"] = hosts
    changed[0]["services"][1]["expose"][1]["hosts"] = None
    changed[0]["services"][0]["expose"][0]["httpOptions"]["maxBodySize"] = size
    assert check(changed) == []
    decoded = m.decode(json.dumps(changed).encode())
    assert shape.violations(decoded) == []


def test_endpoints_are_counted_by_kind() -> None:
    moved = copy.deepcopy(MANIFEST)
    moved[0]["services"][1]["expose"][0]["externalPort"] = 8080  # HTTP becomes a port
    assert set(check(moved)) == {"endpoint_over_utilized", "endpoint_under_utilized"}
    fewer = copy.deepcopy(MANIFEST)
    fewer[0]["services"][1]["expose"][1]["ip"] = ""
    assert "endpoint_under_utilized" in check(fewer)


def test_groups_must_be_the_deployments() -> None:
    other = copy.deepcopy(MANIFEST)
    other[0]["name"] = "there"
    assert check(other) == ["group_unknown", "group_missing"]
    assert check(MANIFEST + MANIFEST) == []  # the shape rules refuse the second
    twice = m.decode(json.dumps(MANIFEST + MANIFEST).encode())
    assert "group_duplicate" in [v.code for v in shape.violations(twice)]


def test_names_only_once_and_at_most_63() -> None:
    for name, code in (
        ("a" * 64, "service_name"),
        ("Web", "service_name"),
        ("web-", "service_name"),
    ):
        renamed = copy.deepcopy(MANIFEST)
        renamed[0]["services"][1]["name"] = name
        decoded = m.decode(json.dumps(renamed).encode())
        assert code in [v.code for v in shape.violations(decoded)]
    twins = copy.deepcopy(MANIFEST)
    twins[0]["services"][0]["name"] = "web"
    assert "service_duplicate" in [
        v.code for v in shape.violations(m.decode(json.dumps(twins).encode()))
    ]
    assert msgspec.json.encode(LOADED.manifest())
