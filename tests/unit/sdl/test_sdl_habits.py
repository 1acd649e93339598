"""How people write SDL files: each habit parses, or is refused with a reason to act on.

The habits were gathered from reading files that tenants publish; the files here are our own, one
habit each, on top of the smallest valid file.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.cli.frame import run
from leasehold.cli.scaffold import Wanted, scaffold
from leasehold.model import sdl

BASE = """---
version: "2.0"
services:
  web:
    image: example/web:1
{service}
    expose:
      - port: 8080
        as: 80
        to:
{to}
profiles:
  compute:
    web:
      resources:
        cpu:
          units: {cpu}
        memory:
          size: {memory}
        storage:
{storage}
{gpu}
  placement:
    here:
      pricing:
        web:
          denom: {denom}
          amount: {amount}
deployment:
  web:
    here:
      profile: web
      count: 1
"""
PLAIN = {
    "service": "    env: [A=b]",
    "to": "          - global: true",
    "cpu": "1",
    "memory": "512Mi",
    "storage": "          size: 1Gi",
    "gpu": "",
    "denom": "uakt",
    "amount": "100",
}
GLOBAL = PLAIN["to"]
DISK = (
    "          - size: 1Gi\n          - name: data\n            size: 1Gi\n            attributes:"
)
GPU = "        gpu:\n          units: 1\n          attributes:\n            vendor:\n"

ACCEPTED: dict[str, dict[str, str]] = {
    "cores with a point": {"cpu": "4.0"},
    "thousandths": {"cpu": "100m"},
    "cores in quotes": {"cpu": '"0.5"'},
    "another coin": {"denom": "uact"},
    "a coin of another chain": {"denom": "ibc/" + "17" * 32},
    "a price with a point": {"amount": "0.5"},
    "variables left empty": {"service": '    env:\n      - "A="\n      - B\n      - C=<CODE>'},
    "a list left empty": {"service": "    env:"},
    "a folded argument": {"service": "    args:\n      - >-\n        one\n        line"},
    "an anchor": {"service": "    env: &common\n      - A=b"},
    "any model of a vendor": {"gpu": GPU + "              nvidia:"},
    "a choice of models": {
        "gpu": GPU
        + "              nvidia:\n                - model: h100\n                - model: a100\n"
        "                  ram: 80Gi"
    },
    "no GPU, said": {"gpu": "        gpu:\n          units: 0"},
    "memory as a disk, not mounted": {"storage": f"{DISK}\n              class: ram"},
    "true in quotes": {
        "storage": f'{DISK}\n              class: beta3\n              persistent: "true"',
        "service": "    params:\n      storage:\n        data:\n          mount: /data",
    },
    "global and a service at once": {"to": f"{GLOBAL}\n            service: web"},
    "global in quotes": {"to": '          - global: "true"'},
    "a protocol in capitals": {"to": f"{GLOBAL}\n        proto: TCP"},
    "several hosts": {
        "to": f"{GLOBAL}\n        accept:\n          - a.example\n          - b.example"
    },
    "limits of HTTP": {
        "to": f"{GLOBAL}\n        http_options:\n          max_body_size: 104857600"
    },
    "half a GiB": {"memory": "0.5Gi"},
    "decimal units": {"memory": "1G"},
    "plain bytes": {"memory": "536870912"},
    "reached by no one but its neighbours": {
        "to": f"{GLOBAL}\n      - port: 9090\n        to:\n          - global: false"
    },
    "a target that is no use to anybody beside one that is": {
        "to": f"          - global: false\n{GLOBAL}"
    },
    "no targets": {"to": f"{GLOBAL}\n      - port: 9090\n        to: []"},
    "hosts all commented out": {"to": f"{GLOBAL}\n        accept:\n          # - a.example"},
    "one port twice": {"to": f"{GLOBAL}\n      - port: 8080\n        to:\n{GLOBAL}"},
    "parameters left empty": {"service": "    params:"},
    "a secret over several lines": {"service": "    env:\n      - KEY=\n        one\n        two"},
    "a line of shell in quotes": {
        "service": "    args: ['echo \"a: b\" > /etc/x ;\n      sleep 1']"
    },
    "numbers and truths as arguments": {"service": '    args: [1, 0.5, true, -p, ""]'},
    "a disk in front of its name": {
        "storage": "          - size: 1Gi\n            name: data",
        "service": "    params:\n      storage:\n        data:\n          mount: /data",
    },
    "only a disk that stays": {
        "storage": "          name: data\n          size: 1Gi\n          attributes:\n"
        "            persistent: true",
        "service": "    params:\n      storage:\n        data:\n          mount: /data/",
    },
    "a model that is a number": {
        "gpu": GPU + "              nvidia:\n                - model: 3090"
    },
    "an interface in capitals": {
        "gpu": GPU + "              nvidia:\n                - model: a100\n"
        "                  interface: PCIe"
    },
    "a whole number with a point": {"to": GLOBAL + "\n      - port: 90.0"},
    "a private registry": {
        "service": "    credentials:\n      host: ghcr.io\n      username: a\n      password: b"
    },
}

REFUSED: dict[str, tuple[dict[str, str], str, str]] = {
    "a unit no size has": ({"memory": "1GB"}, "size", "1G"),
    "a unit in small letters": ({"memory": "1gi"}, "size", "1Gi"),
    "a space before the unit": ({"memory": "512 Mi"}, "size", "512Mi"),
    "two letters for a unit": ({"storage": "          size: 10Gb"}, "size", "10G?"),
    "no unit": ({"memory": "512"}, "memory_out_of_range", "1Mi..2Ti"),
    "a list of cores": ({"cpu": "\n            - 1"}, "type", "text"),
    "too dear": ({"amount": "100000000"}, "price", "10000000"),
    "variables as a mapping": (
        {"service": "    env:\n      A: b"}, "env_mapping", "- NAME=value",
    ),
    "a word of compose": (
        {"service": "    depends_on:\n      - service: web"}, "unknown_key", "start together",
    ),
    "another word of compose": (
        {"service": "    environment:\n      - A=b"}, "unknown_key", "write env",
    ),
    "a volume of compose": ({"service": "    volumes: ['a:/b']"}, "unknown_key", "params.storage"),
    "a word of Dockerfiles": ({"service": "    cmd: [a]"}, "unknown_key", "args"),
    "resources under the service": (
        {"service": "    resources:\n      cpu:\n        units: 1"}, "unknown_key",
        "profiles.compute",
    ),
    "replicas under the service": ({"service": "    count: 1"}, "unknown_key", "deployment"),
    "a word that came with an anchor": (
        {"service": "    <<: {logging: x}"}, "unknown_key", "logging",
    ),
    "variables as pairs": ({"service": "    env:\n      - A: b"}, "env_mapping", "- NAME=value"),
    "a space before =": ({"service": "    env:\n      - A = b"}, "env_name", "without a space"),
    "no space after a dash": (
        {"service": "    env:\n      -'A=b'\n      - C=d"}, "type", "space after the dash",
    ),
    "a colon in an argument": (
        {"service": "    args:\n      - echo a: b"}, "type", "quotes",
    ),
    "global for a target": ({"to": "          - global"}, "type", "- global: true"),
    "a target misspelt": ({"to": "          - servcie: web"}, "unknown_key", "'service'"),
    "an empty target": ({"to": f"{GLOBAL}\n          - {{}}"}, "to", "- service: NAME"),
    "a comma after a name": (
        {"to": f"{GLOBAL}\n          - service: web,"}, "unresolved", "did you mean 'web'",
    ),
    "two ports in one": ({"to": f"{GLOBAL}\n      - port: 80:80"}, "type", "no range"),
    "a port others read as octal": ({"to": f"{GLOBAL}\n      - port: 0110"}, "type", "one number"),
    "a protocol of browsers": (
        {"to": f"{GLOBAL}\n        proto: https"}, "proto", "are tcp",
    ),
    "seconds for a time": (
        {"to": f"{GLOBAL}\n        http_options:\n          read_timeout: 60s"},
        "type", "milliseconds",
    ),
    "capitals in a host": ({"to": f"{GLOBAL}\n        accept: [A.Example]"}, "host", "a.example"),
    "a host for two targets": (
        {"to": f"{GLOBAL}\n          - service: web\n        accept: [a.example]"},
        "host_duplicate", "for each 'to'",
    ),
    "a class outside its place": (
        {"storage": "          size: 1Gi\n          class: beta3"}, "unknown_key", "attributes",
    ),
    "a mount outside its place": (
        {"storage": "          - size: 1Gi\n            mount: /a"},
        "unknown_key", "params.storage",
    ),
    "a GPU by its name alone": (
        {"gpu": GPU + "              nvidia: a100"}, "type", "- model: NAME",
    ),
    "a price with its coin": ({"amount": "100uakt"}, "amount", "like 1000"),
    "a price with a comma": ({"amount": "1,000"}, "amount", "like 1000"),
    "no price": ({"amount": ""}, "amount", "like 1000"),
    "no coin": ({"denom": "$AKT"}, "denom", "uakt"),
    "a star without quotes": ({"service": "    args:\n      - *.log"}, "yaml_syntax", "quote"),
    "a template left in": ({"cpu": "{{ cpu }}"}, "type", "text"),
    "a placeholder left in": ({"cpu": "${CPU}"}, "cpu", "number of cores"),
    "a command as text": ({"service": "    command: bash -c x"}, "type", "list"),
    "a GPU without a kind": (
        {"gpu": "        gpu:\n          units: 1"}, "gpu_attributes", "vendor",
    ),
    "a URL for a host": (
        {"to": f"{GLOBAL}\n        accept:\n          - https://a.example"},
        "accept", "a.example (without",
    ),
    "a wildcard for a host": (
        {"to": f"{GLOBAL}\n        accept:\n          - '*.a.example'"}, "accept", "by itself",
    ),
    "tabs": ({"service": "\tenv: [A=b]"}, "yaml_syntax", "tab"),
    "a key twice": ({"service": "    image: other:1"}, "duplicate_key", "image"),
}  # fmt: skip


@pytest.mark.parametrize("habit", ACCEPTED)
def test_habits_that_are_understood(habit: str) -> None:
    text = BASE.format(**{**PLAIN, **ACCEPTED[habit]})
    assert sdl.validate(text) == []
    assert len(sdl.load(text).hash) == 32


@pytest.mark.parametrize("habit", REFUSED)
def test_habits_that_are_refused_say_what_to_do(habit: str) -> None:
    change, code, hint = REFUSED[habit]
    found = sdl.validate(BASE.format(**{**PLAIN, **change}))
    assert [violation.code for violation in found] == [code]  # and nothing that only follows
    assert found[0].line
    assert hint in f"{found[0].message} {found[0].expected}"


PLACED = "      pricing:\n        web:\n          denom: uakt\n          amount: 100\n"
WHOLE: dict[str, tuple[str, str, list[tuple[str, str, str]]]] = {
    "two dashes for three": ("---", "--", [("", "yaml_syntax", "the line before")]),
    "a price for no profile": (
        PLACED, "      pricing:\n        denom: uakt\n        amount: 100\n",
        [("profiles.placement.here.pricing", "type", "pricing.PROFILE.denom")],
    ),
    "a placement without a name": (
        f"    here:\n{PLACED}", PLACED.replace("\n  ", "\n")[2:],
        [
            ("profiles.placement", "type", "placement.NAME.pricing"),
        ],
    ),
    "deployed nowhere": (
        "    here:\n      profile: web\n      count: 1", "    profile: web\n    count: 1",
        [("deployment.web", "type", "deployment.web.PLACEMENT.profile")],
    ),
    "a service for a placement": (
        "    here:\n      profile", "    web:\n      profile",
        [("deployment.web.web", "unresolved", "deployment.web")],
    ),
    "a profile for a service": (
        "deployment:\n  web:", "deployment:\n  wen:",
        [("deployment.wen", "unresolved", "did you mean 'web'")],
    ),
    "no resources": (
        "      resources:\n", "", [
            (f"profiles.compute.web.{part}", "unknown_key", "under resources")
            for part in ("cpu", "memory", "storage")
        ],
    ),
    "no profile": (
        "      profile: web\n", "", [("deployment.web.here", "missing", "profile")],
    ),
    "nothing but services": (
        "profiles:", "...\nprofiles:", [("", "missing", "profiles"), ("", "missing", "deployment")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("habit", WHOLE)
def test_a_wrong_plan_is_said_once_where_it_is(habit: str) -> None:
    old, new, expected = WHOLE[habit]
    found = sdl.validate(BASE.format(**PLAIN).replace(old, new, 1))
    assert [(each.path, each.code) for each in found] == [
        (path, code) for path, code, _ in expected
    ]
    for violation, (_, _, hint) in zip(found, expected, strict=True):
        assert hint in violation.message


def test_what_the_market_refuses_is_said_beside_all_else() -> None:
    text = BASE.format(**{**PLAIN, "cpu": "1m", "amount": "1e9", "service": "    env: ['A B=c']"})
    found = [(each.path.rpartition(".")[2], each.code) for each in sdl.validate(text)]
    assert found == [("env[0]", "env_name"), ("cpu", "cpu_out_of_range"), ("amount", "amount")]
    dear = sdl.validate(BASE.format(**{**PLAIN, "amount": "100000000", "memory": "1Ki"}))
    assert [each.path for each in dear] == [
        "profiles.compute.web.resources.memory",
        "profiles.placement.here.pricing.web",
    ]


def test_version_2_is_2_0() -> None:
    text = BASE.format(**PLAIN)
    assert sdl.load(text.replace('"2.0"', "'2'")).hash == sdl.load(text).hash


def test_line_ends_and_marks_of_other_systems_change_nothing() -> None:
    text = BASE.format(**PLAIN)
    plain = sdl.load(text).hash
    assert sdl.load(text.replace("\n", "\r\n")).hash == plain
    assert sdl.load("\ufeff" + text).hash == plain


def test_the_scaffold_is_what_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "deploy.yaml"
    asked = [
        "sdl", "init", "shop", "--image", "registry.example:5000/team/shop@sha256:" + "0" * 64,
        "--port", "8080", "--host", "shop.example", "--host", "www.shop.example",
        "-e", "GREETING=hello: \"world\" # not a comment", "-e", "ON=yes",
        "--volume", "data:/var/lib/shop:2Gi", "--count", "3", "--file", str(file),
    ]  # fmt: skip
    assert run(asked) == 0
    loaded = sdl.load(file.read_text())
    (service,) = loaded.manifest()[0].all_services
    assert service.count == 3
    assert list(service.env or ()) == ['GREETING=hello: "world" # not a comment', "ON=yes"]
    assert loaded.manifest()[0].ingress_hosts() == ["shop.example", "www.shop.example"]
    assert loaded.groups()[0].resources[0].resource.storage_bytes == (512 << 20) + (2 << 30)
    assert run(asked) == 5  # what is there is never written over
    assert run(["sdl", "init", "--image", "x", "--memory", "1GB", "--json"]) == 1
    assert run(["sdl", "init", "--image", "x", "--volume", "data"]) == 2
    capsys.readouterr()
    assert run(["sdl", "init", "--image", "nginx"]) == 0
    assert sdl.validate(capsys.readouterr().out) == []


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=30))
def test_values_come_through_the_scaffold_as_they_are(value: str) -> None:
    wanted = Wanted(
        name="web", image="x", port=80, hosts=[], env=[f"A={value}"], volumes=[], cpu="1",
        memory="1Gi", disk="1Gi", count=1, price="1", denom="uakt",
    )  # fmt: skip
    (service,) = sdl.load(scaffold(wanted)).manifest()[0].all_services
    assert list(service.env or ()) == [f"A={value}"]
