"""The whole tree of settings: one section a part, each defined by the package it belongs to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import msgspec

from leasehold.core.ops_settings import OpsSettings
from leasehold.core.settings import Loaded, load
from leasehold.deploy.settings import DeploySettings
from leasehold.dispatch.settings import DispatchSettings
from leasehold.events.settings import EventsSettings
from leasehold.gateway.settings import GatewaySettings
from leasehold.images.coord.settings import CoordSettings
from leasehold.images.settings import ImagesSettings
from leasehold.index.settings import IndexSettings
from leasehold.manifest.settings import ManifestSettings
from leasehold.market.settings import MarketSettings
from leasehold.node.settings import NodeSettings, SystemServices
from leasehold.observe.settings import ObserveSettings
from leasehold.p2p.settings import P2PSettings
from leasehold.schedule.settings import ScheduleSettings
from leasehold.storage.settings import StorageSettings

FILE = "leasehold.toml"
"""Read from the state folder when ``--config`` names no other."""


class LogSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    level: Annotated[str, msgspec.Meta(description="debug, info, warning or error")] = "info"
    format: Annotated[str, msgspec.Meta(description="json, text, or auto by terminal")] = "auto"


class TraceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    endpoint: Annotated[
        str,
        msgspec.Meta(
            description="OTLP/HTTP address of a collector, such as"
            " http://127.0.0.1:4318/v1/traces; empty: no traces"
        ),
    ] = ""
    queue: Annotated[
        int, msgspec.Meta(description="spans that may wait to be sent; more are dropped", ge=64)
    ] = 2048
    timeout_s: Annotated[
        float, msgspec.Meta(description="longest wait for the collector, seconds", gt=0, le=60)
    ] = 10.0


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set."""

    log: LogSettings = LogSettings()
    ops: OpsSettings = OpsSettings()
    traces: TraceSettings = TraceSettings()
    events: EventsSettings = EventsSettings()
    observe: ObserveSettings = ObserveSettings()
    market: MarketSettings = MarketSettings()
    dispatch: DispatchSettings = DispatchSettings()
    index: IndexSettings = IndexSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    manifest: ManifestSettings = ManifestSettings()
    images: ImagesSettings = ImagesSettings()
    coordination: CoordSettings = CoordSettings()
    p2p: P2PSettings = P2PSettings()
    storage: StorageSettings = StorageSettings()
    deploy: DeploySettings = DeploySettings()
    gateway: GatewaySettings = GatewaySettings()
    node: NodeSettings = NodeSettings()
    system_services: SystemServices = SystemServices()


def read(
    state: Path, *, file: Path | None = None, flags: dict[str, Any] | None = None
) -> Loaded[Settings]:
    """The settings in force for a provider that runs from ``state``."""
    found = file
    if found is None and (state / FILE).exists():
        found = state / FILE
    return load(Settings, file=found, environ=os.environ, flags=flags)
