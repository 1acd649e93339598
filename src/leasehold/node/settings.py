"""``[node]``: paths and bounds of the node; ``[system_services]``: the packages shipped with it.

``[system_services]`` keeps the names, defaults and meaning it had in the original, so that an
operator's file can be carried over. Every table and key has a default: an absent section is the
default one. Unknown tables, keys and service names are refused with the nearest known name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from leasehold.core.errors import LeaseholdError, Violation

SYSTEM_SERVICES = ("aqua-ipfs", "trust-graph", "registry", "decider")
"""The packages shipped with the node, in the order the original lists them."""

MAX_PERIOD_SEC = 3_153_600_000
"""100 years; a longer clock period is refused."""

Seconds = Annotated[int, msgspec.Meta(ge=1, le=MAX_PERIOD_SEC)]
DEFAULT_IPFS = "/dns4/ipfs.fluence.dev/tcp/5001"


def _doc(text: str, **limits: Any) -> msgspec.Meta:
    return msgspec.Meta(description=text, **limits)


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Paths, bounds and policies of the node."""

    packages_dir: Annotated[
        str, _doc("directory of own packages, one `*.toml` each; empty for none")
    ] = ""
    images: Annotated[
        tuple[str, ...], _doc("own packages as OCI artifacts, `registry/name@sha256:…`")
    ] = ()
    packages: Annotated[
        dict[str, dict[str, Any]],
        _doc("configuration of own packages: `[node.packages.NAME]` with the keys it declares"),
    ] = {}
    neighbours: Annotated[
        tuple[str, ...], _doc("gateways of other nodes, whose registry records are copied")
    ] = ()
    management_id: Annotated[
        str, _doc("peer id that may re-alias and remove anything on this node; empty: one is made")
    ] = ""
    allow_downgrade: Annotated[
        bool, _doc("install a package older than the one that is installed")
    ] = False
    call_timeout_sec: Annotated[float, _doc("seconds one call to a service may take", gt=0)] = 60.0
    ready_timeout_sec: Annotated[
        float, _doc("seconds a new instance may take until it answers", gt=0)
    ] = 60.0
    drain_sec: Annotated[
        float, _doc("seconds calls to a replaced service may take to end", ge=0)
    ] = 10.0
    settle_sec: Annotated[
        float, _doc("seconds a service without calls must stay up to count as started", ge=0)
    ] = 0.2
    deploy_attempts: Annotated[
        int, _doc("times a package is tried before its failure policy applies", ge=1)
    ] = 3
    deploy_backoff_sec: Annotated[
        float, _doc("first wait between tries in seconds; it doubles, with jitter", gt=0)
    ] = 0.5
    parallel_packages: Annotated[
        int, _doc("packages deployed at once; 0: four for each CPU, at least 16", ge=0)
    ] = 0
    rescan_sec: Annotated[
        float, _doc("seconds between looks for changed package files; 0: never", ge=0)
    ] = 20.0
    health_sec: Annotated[
        float, _doc("seconds between health checks of services; 0: never", ge=0)
    ] = 30.0
    spell_ttl_sec: Annotated[float, _doc("seconds a run of a spell may take", gt=0)] = 120.0
    spell_workers: Annotated[int, _doc("worker processes kept warm for spells", ge=1)] = 2
    max_spell_workers: Annotated[int, _doc("worker processes at most", ge=1)] = 8
    spell_memory_mb: Annotated[int, _doc("address space of a worker in MiB", ge=64)] = 512
    max_queued_runs: Annotated[int, _doc("runs that may wait for a worker", ge=1)] = 20_000
    max_held_events: Annotated[
        int, _doc("trigger events kept until the bus starts; the oldest yields", ge=1)
    ] = 10_000
    open_spell_files: Annotated[
        int, _doc("spell databases kept open, as far as the limit of open files allows", ge=4)
    ] = 1000
    max_call_bytes: Annotated[int, _doc("bytes of one request or reply of a service", ge=1024)] = (
        4 << 20
    )
    log_bytes: Annotated[int, _doc("bytes of log kept for a service, in two files", ge=4096)] = (
        2 << 20
    )


class AquaIpfs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[system_services.aqua_ipfs]`"""

    external_api_multiaddr: Annotated[str, _doc("IPFS API address told to clients")] = DEFAULT_IPFS
    local_api_multiaddr: Annotated[str, _doc("IPFS API address used by the node")] = DEFAULT_IPFS
    ipfs_binary_path: Annotated[str, _doc("path of the `ipfs` program")] = "/usr/bin/ipfs"


class TrustGraph(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[system_services.trust_graph]`"""

    enforce: Annotated[
        bool, _doc("accept only nodes, workers and image peers with a weight above zero")
    ] = False
    certificates: Annotated[
        str, _doc("file with own roots and certificate chains, as the shipped `certificates.json`")
    ] = ""
    replace_bundle: Annotated[bool, _doc("use only the own file, not the shipped certificates")] = (
        False
    )


class Registry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[system_services.registry]`; `registry_period_sec` should divide the other three."""

    registry_period_sec: Annotated[Seconds, _doc("seconds between runs of its spell")] = 3600
    expired_period_sec: Annotated[Seconds, _doc("seconds between removals of the expired")] = 86400
    renew_period_sec: Annotated[Seconds, _doc("seconds between renewals of own records")] = 43200
    replicate_period_sec: Annotated[Seconds, _doc("seconds between copies to neighbours")] = 3600


class Decider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[system_services.decider]`; the chain keys are handed to the connector as they are."""

    decider_period_sec: Annotated[Seconds, _doc("seconds between comparisons with the market")] = (
        120
    )
    worker_period_sec: Annotated[Seconds, _doc("seconds between runs of a lease's spell")] = 900
    worker_ipfs_multiaddr: Annotated[str, _doc("IPFS API of worker definitions")] = DEFAULT_IPFS
    network_api_endpoint: Annotated[str, _doc("RPC of a public chain")] = (
        "https://testnet.aurora.dev"
    )
    contract_address_hex: Annotated[str, _doc("contract with the deals, 0x…")] = ""
    contract_block_hex: Annotated[str, _doc("first block to read, hexadecimal or `latest`")] = (
        "latest"
    )
    network_id: Annotated[int, _doc("id of the public chain", ge=0)] = 80001
    matcher_address: Annotated[str, _doc("address of the matcher contract, 0x…")] = ""
    start_block: Annotated[str, _doc("first block to read, as the later versions name it")] = (
        "latest"
    )
    worker_gas: Annotated[int, _doc("gas of a registration", ge=0)] = 210_000
    wallet_key: Annotated[str, _doc("private key of registrations", extra={"secret": True})] = ""


class Connector(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[system_services.connector]`"""

    curl_binary_path: Annotated[str, _doc("parsed for old files; not used")] = "/usr/bin/curl"


class SystemServices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[system_services]`: which shipped packages run, and their settings."""

    enable: Annotated[
        tuple[str, ...],
        _doc(f"packages to install, of {', '.join(SYSTEM_SERVICES)}; duplicates collapse"),
    ] = SYSTEM_SERVICES
    aqua_ipfs: AquaIpfs = AquaIpfs()
    trust_graph: TrustGraph = TrustGraph()
    registry: Registry = Registry()
    decider: Decider = Decider()
    connector: Connector = Connector()

    def __post_init__(self) -> None:
        check_names(self.enable)

    @property
    def enabled(self) -> tuple[str, ...]:
        """The packages to install, each once."""
        return tuple(dict.fromkeys(self.enable))


def parse_enable(text: str) -> tuple[str, ...]:
    """The `--enable-system-services` flag: ``all``, ``none`` or a comma list of names."""
    if text.strip() == "all":
        return SYSTEM_SERVICES
    if text.strip() in ("none", ""):
        return ()
    return check_names(tuple(part.strip() for part in text.split(",") if part.strip()))


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """``names`` without duplicates; every unknown one is a violation that names the nearest."""
    wrong = []
    for index, name in enumerate(names):
        if name not in SYSTEM_SERVICES:
            near = difflib.get_close_matches(name, SYSTEM_SERVICES, n=1, cutoff=0.3)
            wrong.append(
                Violation(
                    "unknown_system_service",
                    f"there is no system service {name!r}"
                    + (f"; did you mean {near[0]!r}?" if near else ""),
                    path=f"system_services.enable[{index}]",
                    expected=", ".join(SYSTEM_SERVICES),
                    got=name,
                )
            )
    if wrong:
        raise LeaseholdError.of(wrong)
    return tuple(dict.fromkeys(names))
