"""The hash that decides *changed or not*.

A blueprint is the SHA-256 of the whole canonical description of a service: files, command,
environment, limits, image **and** the configuration of its package. Its first part, the *code*,
leaves the configuration out, so that a change of configuration alone can be told apart and handed
to the package's ``on_config_change``. What a command or variable takes from the configuration
belongs to the code: such a process cannot learn of the change in any other way.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from leasehold.node.distro import PackageDistro, ServiceDistro, SpellDistro

_encoder = msgspec.json.Encoder(order="sorted")


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: the same value gives the same bytes."""
    return _encoder.encode(value)


def digest(value: Any) -> str:
    """Hex SHA-256 of ``value``'s canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def service_code(service: ServiceDistro) -> str:
    """Hash of a service without its package's configuration."""
    return digest(
        {
            "name": service.name,
            "run": service.run,
            "image": service.image,
            "builtin": service.builtin,
            "artifacts": {
                name: hashlib.sha256(data).hexdigest() for name, data in service.artifacts.items()
            },
            "env": dict(service.env),
            "limits": service.limits,
            "restart": service.restart,
            "ready": service.ready,
        }
    )


def service_blueprint(package: PackageDistro, service: ServiceDistro) -> str:
    """Hash of a service and the configuration it runs under."""
    return digest([service_code(service), dict(package.config)])


def spell_code(spell: SpellDistro) -> str:
    """Hash of everything a spell's package decides: script, trigger, configuration, schema."""
    return digest(
        {
            "script": spell.script,
            "kv": dict(spell.kv),
            "trigger": spell.trigger,
            "schema": spell.schema,
        }
    )


def init_key(package: PackageDistro) -> str:
    """Hash of what the initialisation does and with what; empty when there is none."""
    if package.init is None:
        return ""
    if isinstance(package.init, tuple):
        return digest([msgspec.to_builtins(package.init), dict(package.config)])
    return digest([package.init.key, dict(package.config)])


def script_cid(script: str) -> str:
    """CIDv1, raw codec, sha2-256, base32: the name of a script's content."""
    import base64

    multihash = bytes([0x01, 0x55, 0x12, 0x20]) + hashlib.sha256(script.encode()).digest()
    return "b" + base64.b32encode(multihash).decode().lower().rstrip("=")


def fingerprint(package: PackageDistro) -> str:
    """Hash of a whole package: equal means there is nothing to do."""
    return digest(
        {
            "name": package.name,
            "version": package.version,
            "services": {s.name: service_blueprint(package, s) for s in package.services},
            "spells": {s.name: spell_code(s) for s in package.spells},
            "init": init_key(package),
            "policies": [package.on_config_change, package.on_failure, package.on_disable],
            "after": package.after,
        }
    )
