"""What happens on a node: packages deployed, findings published by spells."""

from __future__ import annotations

from typing import Any

import msgspec

from leasehold.model.events import payload


@payload("package.deployed")
class PackageDeployed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A deploy of a package ended; ``changes`` says what it did, e.g. ``created registry``."""

    package: str
    version: str
    status: str
    changes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    message: str = ""
    seconds: float = 0.0


@payload("spell.published")
class SpellPublished(msgspec.Struct, frozen=True, kw_only=True):
    """What a spell found and published under ``topic``."""

    spell: str
    run: str
    topic: str
    data: dict[str, Any]
