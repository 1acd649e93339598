"""What ``bench boot`` installs; imported by the node it times, so with nothing else in it."""

from __future__ import annotations

from leasehold.node.distro import PackageDistro, SpellDistro
from leasehold.node.settings import NodeSettings
from leasehold.node.spells.trigger import ClockConfig, TriggerConfig
from leasehold.node.testing import python_service

SETTINGS = NodeSettings(health_sec=0, max_spell_workers=2)
SOURCE = "@service.function\ndef version(): return {version}"


def package(n: int, version: int = 1, *, spell: bool = True) -> PackageDistro:
    ticker = SpellDistro(
        name=f"spell-{n}", script="1", trigger=TriggerConfig(ClockConfig(1, 0, 3600))
    )
    return PackageDistro(
        name=f"package-{n}",
        version=f"{version}.0.0",
        services=(python_service(f"service-{n}", SOURCE.replace("{version}", str(version))),),
        spells=(ticker,) if spell and n % 5 == 0 else (),
    )
