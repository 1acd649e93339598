"""Rules and quirks of the SDL that the shipped examples do not show."""
# ruff: noqa: E501

from __future__ import annotations

from typing import Any

import pytest
import yaml

from leasehold.model import sdl
from leasehold.model.resources import Attribute, Endpoint, Storage, Val
from leasehold.model.sdl import units
from leasehold.model.sdl.profiles import sort_volumes


def document(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "version": "2.0",
        "services": {"web": {"image": "nginx", "expose": [{"port": 80, "to": [{"global": True}]}]}},
        "profiles": {
            "compute": {
                "small": {
                    "resources": {
                        "cpu": {"units": "100m"},
                        "memory": {"size": "64Mi"},
                        "storage": {"size": "64Mi"},
                    }
                }
            },
            "placement": {"here": {"pricing": {"small": {"denom": "uakt", "amount": 1}}}},
        },
        "deployment": {"web": {"here": {"profile": "small", "count": 1}}},
    }
    for path, value in changes.items():
        target = base
        *parents, last = path.split("__")
        for name in parents:
            target = target.setdefault(name, {})
        target[last] = value
    return base


def load(**changes: Any) -> sdl.SDL:
    return sdl.load(yaml.safe_dump(document(**changes)))


def codes(**changes: Any) -> list[str]:
    return [v.code for v in sdl.validate(yaml.safe_dump(document(**changes)))]


RESOURCES = "profiles__compute__small__resources"


@pytest.mark.parametrize(
    ("text", "milli"),
    [("100m", 100), ("0.5", 500), (".25", 250), ("1.0009", 1000), ("2", 2000), ("1.5m", 1)],
)
def test_cpu(text: str, milli: int) -> None:
    assert units.cpu(text) == milli


@pytest.mark.parametrize("text", ["", "-1", "1e3", "m", "1 m", "1M", "0x10", "９"])
def test_what_is_no_amount_of_cpu(text: str) -> None:
    assert units.cpu(text) is None


@pytest.mark.parametrize(
    ("text", "size"),
    [("1k", 1000), ("1Ki", 1024), ("0.5Gi", 2**29), ("7", 7), ("1E", 10**18), ("1.5M", 1_500_000)],
)
def test_size(text: str, size: int) -> None:
    assert units.size(text) == size


@pytest.mark.parametrize("text", ["1K", "1i", "Gi", "-1Gi", "16Ei", "1 Gi", "1GB"])
def test_what_is_no_size(text: str) -> None:
    assert units.size(text) is None


def test_prices_have_eighteen_decimals_however_long_they_are() -> None:
    assert units.amount("1") == "1.000000000000000000"
    assert units.amount("9999999999999999999999.000000000000000001") == (
        "9999999999999999999999.000000000000000001"
    )
    assert units.amount("1e3") is None


def test_durations() -> None:
    assert units.duration("1h30m") == 5400
    assert units.duration("24h") == 86400
    assert [units.duration(t) for t in ("", "1", "h", "1h ", "-1h")] == [None] * 5


def test_equally_large_ephemeral_volumes_turn_round() -> None:
    def volume(name: str, size: int, persistent: bool = False) -> Storage:
        attributes = [Attribute("persistent", "true")] if persistent else None
        return Storage(Val.of(size), name, attributes)

    names = [v.name for v in sort_volumes([volume("a", 5), volume("b", 5), volume("c", 1)])]
    assert names == ["c", "b", "a"]
    kept = sort_volumes([volume("p", 5, True), volume("q", 5, True)])
    assert [v.name for v in kept] == ["p", "q"]
    mixed = sort_volumes([volume("p", 5, True), volume("e", 5)])
    assert [v.name for v in mixed] == ["e", "p"]


def test_sizes_are_compared_as_numbers() -> None:
    small, large = Storage(Val.of(9), "small"), Storage(Val.of(10), "large")
    assert [v.name for v in sort_volumes([large, small])] == ["small", "large"]


def test_a_service_link_takes_an_endpoint_number() -> None:
    loaded = load(
        services={
            "web": {
                "image": "nginx",
                "expose": [{"port": 80, "to": [{"global": True, "ip": "addr"}]}],
            },
            "db": {"image": "pg", "expose": [{"port": 5432, "to": [{"service": "web"}]}]},
        },
        deployment={name: {"here": {"profile": "small", "count": 1}} for name in ("web", "db")},
        endpoints={"addr": {"kind": "ip"}},
    )
    service = loaded.manifest()[0].all_services[1]
    assert service.exposes[0].endpoint_sequence_number == 2
    assert service.resources.endpoints == [Endpoint(0, 0), Endpoint(2, 2)]


def test_null_and_empty_lists_stay_apart() -> None:
    loaded = load(services__web__args=[], services__web__env=None)
    service = loaded.manifest()[0].all_services[0]
    assert (service.args, service.env, service.command) == ([], None, None)


def test_version_2_0_keeps_credentials_raw_and_drops_the_email() -> None:
    given = {"host": " h ", "email": "a@b", "username": "u", "password": "p"}
    old = load(services__web__credentials=given).manifest()[0].all_services[0].credentials
    new = load(services__web__credentials=given, version="2.1").manifest()[0].all_services[0]
    assert old is not None and (old.host, old.email) == (" h ", "")
    assert new.credentials is not None
    assert (new.credentials.host, new.credentials.email) == ("h", "a@b")


def test_services_of_one_profile_share_a_unit_from_2_1_on() -> None:
    both = {
        "services": {
            name: {"image": "nginx", "expose": [{"port": port, "to": [{"global": True}]}]}
            for name, port in (("a", 80), ("b", 81))
        },
        "deployment": {n: {"here": {"profile": "small", "count": 2}} for n in ("a", "b")},
    }
    old, new = load(**both), load(**both, version="2.1")
    assert [(u.resource.id, u.count) for u in old.groups()[0].resources] == [(1, 2), (2, 2)]
    assert [(u.resource.id, u.count) for u in new.groups()[0].resources] == [(1, 4)]
    assert [s.resources.id for s in new.manifest()[0].all_services] == [1, 1]


def test_gpu_attributes() -> None:
    vendor = {"nvidia": [{"model": "a100", "ram": "80Gi", "interface": "sxm"}, {"model": "t4"}]}
    loaded = load(**{f"{RESOURCES}__gpu": {"units": 1, "attributes": {"vendor": vendor}}})
    gpu = loaded.groups()[0].resources[0].resource.gpu
    assert gpu is not None and gpu.attributes == [
        Attribute("vendor/nvidia/model/a100/ram/80Gi/interface/sxm", "true"),
        Attribute("vendor/nvidia/model/t4", "true"),
    ]
    anything = load(
        **{f"{RESOURCES}__gpu": {"units": 1, "attributes": {"vendor": {"nvidia": None}}}}
    )
    gpu = anything.groups()[0].resources[0].resource.gpu
    assert gpu is not None and gpu.attributes == [Attribute("vendor/nvidia/model/*", "true")]


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        ("unresolved", {"deployment__web__here__profile": "smal"}),
        ("unresolved", {"deployment__web__there": {"profile": "small", "count": 1}}),
        ("unresolved", {"deployment__wob": {"here": {"profile": "small", "count": 1}}}),
        ("pricing_missing", {"profiles__placement__here__pricing": {"other": {"denom": "uakt", "amount": 1}}}),
        ("amount", {"profiles__placement__here__pricing__small__amount": 0}),
        ("cpu_out_of_range", {f"{RESOURCES}__cpu__units": "5m"}),
        ("memory_out_of_range", {f"{RESOURCES}__memory__size": "1Ki"}),
        ("storage_out_of_range", {f"{RESOURCES}__storage__size": "1Mi"}),
        ("gpu_attributes", {f"{RESOURCES}__gpu": {"units": 1}}),
        ("storage_persistent", {f"{RESOURCES}__storage": {"size": "64Mi", "attributes": {"class": "beta1"}}}),
        ("storage_ram", {f"{RESOURCES}__storage": {"size": "64Mi", "attributes": {"class": "ram", "persistent": True}},
            "services__web__params": {"storage": {"default": {"mount": "/m"}}}}),
        ("storage_duplicate", {f"{RESOURCES}__storage": [{"size": "64Mi"}, {"size": "64Mi"}]}),
        ("ip_not_global", {"services__web__expose": [
            {"port": 80, "to": [{"global": True}]}, {"port": 81, "to": [{"service": "web", "ip": "a"}]}],
            "endpoints": {"a": {"kind": "ip"}}}),
        ("ip_port_taken", {"services__web__expose": [{"port": 80, "to": [{"global": True, "ip": "a"}]}] * 2,
            "endpoints": {"a": {"kind": "ip"}}}),
        ("next_cases", {"services__web__expose": [
            {"port": 80, "to": [{"global": True}], "http_options": {"next_cases": ["off", "500"]}}]}),
        ("out_of_range", {"services__web__expose": [
            {"port": 80, "to": [{"global": True}], "http_options": {"max_body_size": 2**30}}]}),
        ("service_name", {"services__Web": {"image": "x"}}),
        ("host", {"services__web__expose": [{"port": 80, "accept": ["Foo.com"], "to": [{"global": True}]}]}),
        ("no_global_service", {"services__web__expose": [{"port": 80}]}),
        ("tee_gpu", {"services__web__params": {"tee": "cpu-gpu"}}),
        ("version", {"version": "1.5"}),
        ("env_name", {"services__web__env": ["=x"]}),
    ],
)  # fmt: skip
def test_refuses(expected: str, changes: dict[str, Any]) -> None:
    assert codes(**changes) == [expected]


def test_merges_and_anchors_are_understood() -> None:
    text = yaml.safe_dump(document()).replace("count: 1", "<<: {count: 3, profile: other}")
    assert sdl.load(text).groups()[0].resources[0].count == 3


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("yaml_syntax", "a: [b\nc: d"),
        ("yaml_syntax", "a: \x00"),
        ("yaml_syntax", "a: *nowhere"),
        ("yaml_too_deep", "[" * 100_000),
        ("yaml_too_deep", "- " * 100_000 + "a"),
        ("yaml_too_deep", "? " * 100_000 + "a"),
        ("sdl_too_large", "a: b\n" * 200_000),
        ("sdl_empty", ""),
        ("sdl_empty", "# only a comment"),
        ("sdl_empty", "just text"),
        ("duplicate_key", "services: {}\nservices: {}"),
    ],
)
def test_hostile_or_broken_text_is_refused_early(code: str, text: str) -> None:
    assert code in [v.code for v in sdl.validate(text)]


def test_aliases_cannot_multiply() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert sdl.validate("\n".join(lines))
    nested = "x: &x {expose: [" + ", ".join(["{to: &t [" + "{}, " * 99 + "{}]}"] * 1) + "]}\n"
    many = "services: {" + ", ".join(f"s{n}: *x" for n in range(2000)) + "}"
    assert [v.code for v in sdl.validate(nested + many)][-1] == "sdl_too_complex"


def test_shapes_seen_in_the_wild() -> None:
    """Comments, block scalars in commands, odd quoting, a single volume as list or mapping."""
    text = """---
version: "2.0"
services:
  mirage:
    image: nvidia/cuda:12.4.1-cudnn-devel-ubuntu22.04  # replace with yours
    env:
      - ROOT_PASSWORD=Mirage2026!
      - PEERS=<id@host:26656>
      - "ES_JAVA_OPTS=-Xms512m -Xmx512m"
      - discovery.type=single-node
    command:
      - bash
      - -c
      - |
        apt-get update -qq && apt-get install -y git > /dev/null
        cd /workspace
    expose:
      - {port: 22, as: 22, to: [{global: true}]}
      - port: 51820
        proto: udp
        to:
          - global: true
    # params:
    #   storage: {}
profiles:
  compute:
    mirage:
      resources:
        cpu: {units: 0.5}
        memory: {size: 80Gi}
        storage:
          - size: 200Gi
        gpu: {units: 1, attributes: {vendor: {nvidia: [{model: h200}]}}}
  placement:
    akash: {pricing: {mirage: {denom: uact, amount: 1000000}}}
deployment:
  mirage: {akash: {profile: mirage, count: 1}}
"""
    loaded = sdl.load(text)
    service = loaded.manifest()[0].all_services[0]
    assert service.command is not None and service.command[2].endswith("cd /workspace\n")
    assert service.env is not None and service.env[1] == "PEERS=<id@host:26656>"


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("env_mapping", {"services__web__env": {"DATABASE_URL": "x"}}),
        ("unresolved", {"deployment__web": {"nowhere": {"profile": "small", "count": 1}}}),
        (
            "unknown_key",
            {"profiles__compute__small": {"cpu": "0.25", "memory": "1Gi", "disk": "5Gi"}},
        ),
        ("type", {"profiles__placement__here__pricing__small": 100}),
        (
            "type",
            {"services__web__expose": [{"port": "${PORT}", "to": [{"global": True}]}]},
        ),
    ],
)
def test_mistakes_seen_in_the_wild_are_named(code: str, changes: dict[str, Any]) -> None:
    found = sdl.validate(yaml.safe_dump(document(**changes)))
    assert code in [v.code for v in found]
    assert all(v.message and v.line for v in found)
