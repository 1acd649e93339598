"""The four packages shipped with every node, built from ``[system_services]``.

``trust-graph``  certificates of peers and what they weigh
``registry``     who offers what, found by name; its spell expires, renews and copies records
``aqua-ipfs``    files in IPFS
``decider``      compares the market's leases with what is deployed; reads it through ``connector``
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.node import rpc
from leasehold.node.bundled.certificates import TrustGraphInit
from leasehold.node.distro import (
    InitCall,
    Limits,
    PackageDistro,
    ServiceDistro,
    SpellDistro,
)
from leasehold.node.settings import SystemServices
from leasehold.node.spells.trigger import ClockConfig, TriggerConfig

if TYPE_CHECKING:
    from leasehold.node.service import Node

SPELL_ENGINE_VERSION = "1.0.0"
"""Version of what scripts may rely on: the functions in ``spells/worker.py``."""

VERSIONS = {
    "aqua-ipfs": "1.0.0",
    "trust-graph": "1.0.0",
    "registry": "1.0.0",
    "decider": "1.0.0",
}


@cache
def _read(path: str) -> bytes:
    return (resources.files(__package__) / path).read_bytes()


def _python(folder: str, *flags: str, **also: bytes) -> dict[str, Any]:
    """Command and files of a service in Python; ``-S`` for one that needs no other packages."""
    files = {"service.py": _read(f"{folder}/service.py"), **also}
    return {"run": ("{python}", *flags, "{app}/service.py"), "artifacts": files}


def _every(period_sec: int) -> TriggerConfig:
    """At once, then every ``period_sec`` seconds."""
    return TriggerConfig(clock=ClockConfig(start_sec=1, period_sec=period_sec))


def all_packages(settings: SystemServices) -> dict[str, PackageDistro]:
    """Every shipped package, enabled or not."""
    made = (
        _aqua_ipfs(settings),
        _trust_graph(settings),
        _registry(settings),
        _decider(settings),
    )
    return {package.name: package for package in made}


def packages(settings: SystemServices) -> dict[str, PackageDistro]:
    """The enabled packages."""
    shipped = all_packages(settings)
    return {name: shipped[name] for name in settings.enabled}


def _aqua_ipfs(settings: SystemServices) -> PackageDistro:
    config = msgspec.to_builtins(settings.aqua_ipfs)
    return PackageDistro(
        name="aqua-ipfs",
        version=VERSIONS["aqua-ipfs"],
        config=config,
        services=(ServiceDistro(name="aqua-ipfs", **_python("aqua_ipfs", "-S")),),
        init=(
            InitCall("aqua-ipfs.set_local_api_multiaddr", (config["local_api_multiaddr"],)),
            InitCall("aqua-ipfs.set_external_api_multiaddr", (config["external_api_multiaddr"],)),
        ),
        on_config_change="reinstall",
    )


def certificates(settings: SystemServices) -> TrustGraphInit:
    """The certificates shipped and those of the operator."""
    own, replace = settings.trust_graph.certificates, settings.trust_graph.replace_bundle
    bundle = _read("trust_graph/certificates.json")
    return TrustGraphInit(bundle, Path(own) if own else None, replace=replace)


def _trust_graph(settings: SystemServices) -> PackageDistro:
    trust = Path(__file__).parent.parent / "trust.py"
    return PackageDistro(
        name="trust-graph",
        version=VERSIONS["trust-graph"],
        config={"replace_bundle": settings.trust_graph.replace_bundle},
        services=(
            ServiceDistro(
                name="trust-graph", **_python("trust_graph", **{"trust.py": trust.read_bytes()})
            ),
        ),
        init=certificates(settings),
    )


def _registry(settings: SystemServices) -> PackageDistro:
    registry = settings.registry
    return PackageDistro(
        name="registry",
        version=VERSIONS["registry"],
        config={},
        services=(
            ServiceDistro(
                name="registry", limits=Limits(memory_mb=256), **_python("registry", "-S")
            ),
        ),
        spells=(
            SpellDistro(
                name="registry-spell",
                script=_read("registry/registry.star").decode(),
                kv={
                    "config": {
                        "expired_interval": registry.expired_period_sec,
                        "renew_interval": registry.renew_period_sec,
                        "replicate_interval": registry.replicate_period_sec,
                    }
                },
                trigger=_every(registry.registry_period_sec),
            ),
        ),
        after=("trust-graph",),
    )


def _decider(settings: SystemServices) -> PackageDistro:
    decider = settings.decider
    return PackageDistro(
        name="decider",
        version=VERSIONS["decider"],
        config={
            "network_api_endpoint": decider.network_api_endpoint,
            "contract_address_hex": decider.contract_address_hex,
            "contract_block_hex": decider.contract_block_hex,
            "network_id": decider.network_id,
            "matcher_address": decider.matcher_address,
            "start_block": decider.start_block,
            "worker_gas": decider.worker_gas,
        },
        services=(ServiceDistro(name="connector", builtin="connector"),),
        spells=(
            SpellDistro(
                name="decider",
                script=_read("decider/decider.star").decode(),
                kv={
                    "worker_settings": {
                        "script": _read("decider/worker.star").decode(),
                        "period": decider.worker_period_sec,
                        "ipfs": decider.worker_ipfs_multiaddr,
                    },
                    "info": {
                        "api_endpoint": decider.network_api_endpoint,
                        "address": decider.contract_address_hex,
                        "from_block": decider.contract_block_hex,
                    },
                },
                trigger=_every(decider.decider_period_sec),
            ),
        ),
        on_config_change="ignore",
        after=("registry", "aqua-ipfs"),
    )


def builtin_functions(node: Node) -> dict[str, dict[str, rpc.Function]]:
    """What the node itself answers as a service."""

    async def get_leases() -> dict[str, Any]:
        """Every lease of this provider; refused when the market does not answer."""
        if node.market is None:
            raise unavailable("no_market", "this node is not connected to a market")
        leases = await node.market.leases()
        if leases is None:
            raise unavailable("market_unreachable", "the market does not answer")
        return {"leases": msgspec.to_builtins(leases)}

    async def get_lease(id: str) -> dict[str, Any]:
        """One lease, ``lease: null`` when the market says that there is none."""
        if node.market is None:
            raise unavailable("no_market", "this node is not connected to a market")
        try:
            lease = await node.market.lease(id)
        except LeaseholdError:
            raise
        except Exception as error:
            raise LeaseholdError(
                "market_failed", f"the market could not be read: {error}", kind=Kind.UNAVAILABLE
            ) from None
        return {"lease": None if lease is None else msgspec.to_builtins(lease)}

    return {"connector": {"get_leases": get_leases, "get_lease": get_lease}}
