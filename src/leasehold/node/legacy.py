"""Old variables of the original, applied after every other source, each with a warning.

Two sorts: the nested form with the original's prefix (``FLUENCE_SYSTEM_SERVICES__…``) and the
flat ``FLUENCE_ENV_…`` names of its first releases. A value that cannot be used is reported and
ignored, as the original did; what each warning says is what was done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from leasehold.core.errors import LeaseholdError
from leasehold.node.settings import SystemServices, parse_enable

NESTED = "FLUENCE_SYSTEM_SERVICES__"
JOIN_ALL = "FLUENCE_ENV_CONNECTOR_JOIN_ALL_DEALS"

FLAT: dict[str, tuple[str, str]] = {
    "FLUENCE_ENV_AQUA_IPFS_EXTERNAL_API_MULTIADDR": ("aqua_ipfs", "external_api_multiaddr"),
    "FLUENCE_ENV_AQUA_IPFS_LOCAL_API_MULTIADDR": ("aqua_ipfs", "local_api_multiaddr"),
    "FLUENCE_ENV_CONNECTOR_API_ENDPOINT": ("decider", "network_api_endpoint"),
    "FLUENCE_ENV_CONNECTOR_CONTRACT_ADDRESS": ("decider", "contract_address_hex"),
    "FLUENCE_ENV_CONNECTOR_FROM_BLOCK": ("decider", "contract_block_hex"),
    "FLUENCE_ENV_CONNECTOR_WALLET_KEY": ("decider", "wallet_key"),
    "FLUENCE_ENV_CONNECTOR_WORKER_GAS": ("decider", "worker_gas"),
    "FLUENCE_ENV_DECIDER_IPFS_MULTIADDR": ("decider", "worker_ipfs_multiaddr"),
}
"""Variable to ``(table, key)`` of ``[system_services]``."""


def apply(services: SystemServices, environ: Mapping[str, str]) -> tuple[SystemServices, list[str]]:
    """``services`` with the old variables of ``environ`` applied, and one warning for each.

    Values never appear in a warning: some of them are keys.
    """
    tree: dict[str, Any] = msgspec.to_builtins(services)
    warnings: list[str] = []
    for name in sorted(environ):
        if name.startswith(NESTED):
            tree = _nested(tree, name, environ[name], warnings)
    for name, (table, key) in FLAT.items():
        if name in environ:
            tree = _set(tree, name, (table, key), environ[name], warnings)
    if JOIN_ALL in environ:
        tree = _join_all(tree, environ[JOIN_ALL], warnings)
    return msgspec.convert(tree, SystemServices), warnings


def _nested(tree: dict[str, Any], name: str, value: str, warnings: list[str]) -> dict[str, Any]:
    path = tuple(part.lower() for part in name.removeprefix(NESTED).split("__"))
    if path == ("enable",):
        try:
            names = parse_enable(value)
        except LeaseholdError as error:
            warnings.append(f"{name} is ignored: {error.message}")
            return tree
        warnings.append(_moved(name, path))
        return {**tree, "enable": names}
    return _set(tree, name, path, value, warnings)


def _set(
    tree: dict[str, Any], name: str, path: tuple[str, ...], value: str, warnings: list[str]
) -> dict[str, Any]:
    if len(path) != 2 or path[0] not in tree or path[1] not in tree[path[0]]:
        warnings.append(f"{name} is ignored: there is no setting {'.'.join(path)}")
        return tree
    table, key = path
    typed: object = value
    if isinstance(tree[table][key], bool):
        typed = value.strip().lower() in ("1", "true", "yes")
    elif isinstance(tree[table][key], int):
        try:
            typed = int(value)
        except ValueError:
            warnings.append(f"{name} is ignored: it is no number")
            return tree
    changed = {**tree, table: {**tree[table], key: typed}}
    try:
        msgspec.convert(changed, SystemServices)
    except msgspec.ValidationError as error:
        warnings.append(f"{name} is ignored: {error}")
        return tree
    warnings.append(_moved(name, path))
    return changed


def _join_all(tree: dict[str, Any], value: str, warnings: list[str]) -> dict[str, Any]:
    enabled = list(tree["enable"])
    if value == "true":
        enabled = [*enabled, "decider"] if "decider" not in enabled else enabled
    elif value == "false":
        enabled = [each for each in enabled if each != "decider"]
    else:
        warnings.append(f"{JOIN_ALL} is ignored: expected true or false")
        return tree
    warnings.append(_moved(JOIN_ALL, ("enable",)))
    return {**tree, "enable": enabled}


def _moved(name: str, path: tuple[str, ...]) -> str:
    new = "LEASEHOLD_SYSTEM_SERVICES__" + "__".join(path).upper()
    return f"{name} is an old name and overrides other sources; set {new} instead"
