"""The SDL file a tenant begins with: one public service, every part of it named and explained."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from leasehold.core.errors import Kind, LeaseholdError

_PLAIN = re.compile(r"^[A-Za-z0-9./_@:+-]*[A-Za-z0-9_/]$")
"""Text that YAML reads as itself; all else is quoted."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What it is made of. ``volumes`` are ``name:/where:size``."""

    name: str
    image: str
    port: int
    hosts: Sequence[str]
    env: Sequence[str]
    volumes: Sequence[str]
    cpu: str
    memory: str
    disk: str
    count: int
    price: str
    denom: str


def scaffold(wanted: Wanted) -> str:
    """The text; not checked, but for the form of volumes."""
    volumes = [_volume(text) for text in wanted.volumes]
    name = _scalar(wanted.name)
    lines = [
        'version: "2.0"',
        "services:",
        f"  {name}:",
        f"    image: {_scalar(wanted.image)}",
    ]
    if wanted.env:
        lines += ["    env:", *(f"      - {_scalar(entry)}" for entry in wanted.env)]
    lines += [
        "    expose:",
        f"      - port: {wanted.port}",
        "        as: 80 # public HTTP; any other number becomes a port of its own",
        "        to:",
        "          - global: true",
    ]
    if wanted.hosts:
        lines += ["        accept:", *(f"          - {_scalar(host)}" for host in wanted.hosts)]
    if volumes:
        lines += ["    params:", "      storage:"]
        for volume, where, _ in volumes:
            lines += [f"        {volume}:", f"          mount: {_scalar(where)}"]
    lines += [
        "profiles:",
        "  compute:",
        f"    {name}:",
        "      resources:",
        "        cpu:",
        f"          units: {wanted.cpu}",
        "        memory:",
        f"          size: {wanted.memory}",
        "        storage:",
        f"          - size: {wanted.disk} # empty again after every restart",
    ]
    for volume, _, size in volumes:
        lines += [
            f"          - name: {volume}",
            f"            size: {size}",
            "            attributes:",
            "              persistent: true",
            "              class: beta2",
        ]
    return "\n".join(
        [
            *lines,
            "  placement:",
            "    anywhere:",
            "      pricing:",
            f"        {name}: # the most you pay, for each block",
            f"          denom: {_scalar(wanted.denom)}",
            f"          amount: {wanted.price}",
            "deployment:",
            f"  {name}:",
            "    anywhere:",
            f"      profile: {name}",
            f"      count: {wanted.count}",
            "",
        ]
    )


def _volume(text: str) -> tuple[str, str, str]:
    parts = text.split(":")
    if len(parts) != 3 or not all(parts):
        raise LeaseholdError(
            "bad_volume",
            f"{text!r} is no volume; write it as data:/var/lib/data:1Gi",
            kind=Kind.MALFORMED,
            path="--volume",
            expected="NAME:/where:SIZE",
            got=text,
        )
    return parts[0], parts[1], parts[2]


def _scalar(text: str) -> str:
    quoted = json.dumps(text, ensure_ascii=False)
    return text if _PLAIN.match(text) and text.lower() not in _WORDS else quoted


_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
"""What YAML takes for something other than text; numbers are matched as keys and stay text."""
