"""`[system_services]`: names, defaults, sources and old variables, as an operator meets them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.core.settings import load
from leasehold.node import legacy
from leasehold.node.settings import NodeSettings, SystemServices, parse_enable

IPFS = "/dns4/ipfs.fluence.dev/tcp/5001"


class Tree(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    node: NodeSettings = NodeSettings()
    system_services: SystemServices = SystemServices()


def loaded(text: str = "", tmp: Path | None = None, **environ: str) -> SystemServices:
    file = None
    if tmp is not None:
        file = tmp / "leasehold.toml"
        file.write_text(text)
    return load(Tree, file=file, environ=environ).values.system_services


def test_defaults() -> None:
    s = SystemServices()
    assert s.enabled == ("aqua-ipfs", "trust-graph", "registry", "decider")
    assert (s.aqua_ipfs.external_api_multiaddr, s.aqua_ipfs.local_api_multiaddr) == (IPFS, IPFS)
    assert s.aqua_ipfs.ipfs_binary_path == "/usr/bin/ipfs"
    assert (s.decider.decider_period_sec, s.decider.worker_period_sec) == (120, 900)
    assert s.decider.network_api_endpoint == "https://testnet.aurora.dev"
    assert (s.decider.network_id, s.decider.worker_gas) == (80001, 210_000)
    assert s.decider.wallet_key == ""
    registry = s.registry
    assert (registry.registry_period_sec, registry.expired_period_sec) == (3600, 86400)
    assert (registry.renew_period_sec, registry.replicate_period_sec) == (43200, 3600)
    assert s.connector.curl_binary_path == "/usr/bin/curl"


def test_sources(tmp_path: Path) -> None:
    text = """
    [system_services]
    enable = ["registry", "decider", "registry"]
    [system_services.decider]
    decider_period_sec = 60
    worker_period_sec = 600
    """
    s = loaded(text, tmp_path, LEASEHOLD_SYSTEM_SERVICES__DECIDER__DECIDER_PERIOD_SEC="30")
    assert s.enabled == ("registry", "decider")
    assert (s.decider.decider_period_sec, s.decider.worker_period_sec) == (30, 600)
    s = loaded(LEASEHOLD_SYSTEM_SERVICES__ENABLE="aqua-ipfs, decider")
    assert s.enabled == ("aqua-ipfs", "decider")
    assert loaded(LEASEHOLD_SYSTEM_SERVICES__ENABLE="").enabled == ()
    with pytest.raises(LeaseholdError, match="no JSON"):
        loaded(LEASEHOLD_SYSTEM_SERVICES__ENABLE="[registry")
    with pytest.raises(LeaseholdError, match="did you mean 'aqua-ipfs'"):
        loaded(LEASEHOLD_SYSTEM_SERVICES__ENABLE="aqua_ipfs")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("[system_services]\nenable = ['decidr']", "system_services.enable"),
        ("[system_services.decidr]\ndecider_period_sec = 1", "system_services.decidr"),
        ("[system_services.decider]\nperiod = 1", "system_services.decider.period"),
        ("[[system_services.aqua_ipfs]]\nlocal_api_multiaddr = 'x'", "system_services.aqua_ipfs"),
        (
            "[system_services.registry]\nregistry_period_sec = 0",
            "system_services.registry.registry_period_sec",
        ),
    ],
)
def test_typos_are_refused_with_their_path(tmp_path: Path, text: str, path: str) -> None:
    with pytest.raises(LeaseholdError) as caught:
        loaded(text, tmp_path)
    assert any(v.path.startswith(path) for v in caught.value.violations)


def test_the_enable_flag() -> None:
    assert parse_enable("none") == ()
    assert len(parse_enable("all")) == 4
    assert parse_enable("decider,registry,decider") == ("decider", "registry")
    with pytest.raises(LeaseholdError, match="did you mean 'trust-graph'"):
        parse_enable("trust_graph")


def test_old_variables_come_last_and_warn() -> None:
    services, warnings = legacy.apply(
        SystemServices(enable=("registry",)),
        {
            "FLUENCE_ENV_AQUA_IPFS_EXTERNAL_API_MULTIADDR": "/ip4/1.2.3.4/tcp/1",
            "FLUENCE_ENV_AQUA_IPFS_LOCAL_API_MULTIADDR": "/ip4/1.2.3.4/tcp/2",
            "FLUENCE_ENV_CONNECTOR_JOIN_ALL_DEALS": "true",
            "FLUENCE_ENV_CONNECTOR_API_ENDPOINT": "http://rpc",
            "FLUENCE_ENV_CONNECTOR_CONTRACT_ADDRESS": "0x1",
            "FLUENCE_ENV_CONNECTOR_FROM_BLOCK": "0x2",
            "FLUENCE_ENV_CONNECTOR_WORKER_GAS": "many",
            "FLUENCE_ENV_DECIDER_IPFS_MULTIADDR": "/ip4/1.2.3.4/tcp/3",
            "FLUENCE_SYSTEM_SERVICES__DECIDER__DECIDER_PERIOD_SEC": "60",
            "FLUENCE_SYSTEM_SERVICES__NOTHING__AT_ALL": "1",
        },
    )
    assert services.enabled == ("registry", "decider")
    assert services.aqua_ipfs.external_api_multiaddr == "/ip4/1.2.3.4/tcp/1"
    assert services.aqua_ipfs.local_api_multiaddr == "/ip4/1.2.3.4/tcp/2"
    decider = services.decider
    assert (decider.network_api_endpoint, decider.contract_address_hex) == ("http://rpc", "0x1")
    assert (decider.contract_block_hex, decider.worker_gas) == ("0x2", 210_000)
    assert decider.worker_ipfs_multiaddr == "/ip4/1.2.3.4/tcp/3"
    assert decider.decider_period_sec == 60
    assert len(warnings) == 10
    assert sum("ignored" in warning for warning in warnings) == 2


@pytest.mark.parametrize(
    ("value", "enabled"),
    [("false", ("registry",)), ("yes", ("registry", "decider"))],
)
def test_join_all_deals(value: str, enabled: tuple[str, ...]) -> None:
    services, warnings = legacy.apply(
        SystemServices(enable=("registry", "decider")),
        {"FLUENCE_ENV_CONNECTOR_JOIN_ALL_DEALS": value},
    )
    assert services.enabled == enabled
    assert len(warnings) == 1
    assert legacy.apply(SystemServices(), {}) == (SystemServices(), [])
