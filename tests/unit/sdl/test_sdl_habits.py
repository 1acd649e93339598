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
    "a private registry": {
        "service": "    credentials:\n      host: ghcr.io\n      username: a\n      password: b"
    },
}

REFUSED: dict[str, tuple[dict[str, str], str, str]] = {
    "a unit no size has": ({"memory": "1GB"}, "size", "1G"),
    "a unit in small letters": ({"memory": "1gi"}, "size", "1Gi"),
    "a space before the unit": ({"memory": "512 Mi"}, "size", "512Mi"),
    "a list of cores": ({"cpu": "\n            - 1"}, "type", "text"),
    "too dear": ({"amount": "100000000"}, "price", "10000000"),
    "variables as a mapping": (
        {"service": "    env:\n      A: b"}, "env_mapping", "- NAME=value",
    ),
    "a word of compose": (
        {"service": "    depends_on:\n      - service: web"}, "unknown_key", "dependencies",
    ),
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
    assert found[0].code == code
    assert found[0].line
    assert hint in f"{found[0].message} {found[0].expected}"


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
