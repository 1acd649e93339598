"""An SDL as data: what was written, each part with its place in the file."""

from __future__ import annotations

from dataclasses import dataclass, field

from leasehold.model.manifest import Credentials, HttpOptions
from leasehold.model.resources import Attribute, Storage
from leasehold.model.sdl.nodes import At


@dataclass(slots=True)
class To:
    at: At
    service: str = ""
    global_: bool = False
    ip: str = ""


@dataclass(slots=True)
class ExposeSpec:
    at: At
    port: int
    as_: int
    proto: str
    to: list[To]
    accept: list[str]
    accept_at: list[At]
    http: HttpOptions

    @property
    def ingress(self) -> bool:
        """Global HTTP, if one of its targets is global."""
        return self.proto == "TCP" and (self.as_ or self.port) == 80


@dataclass(slots=True)
class Mount:
    at: At
    name: str
    mount: str
    read_only: bool


@dataclass(slots=True)
class Params:
    at: At
    mounts: list[Mount] = field(default_factory=list)
    read: list[str] | None = None
    tee: str = ""


@dataclass(slots=True)
class ServiceSpec:
    at: At
    name: str
    image: str
    command: list[str] | None
    args: list[str] | None
    env: list[str] | None
    exposes: list[ExposeSpec]
    params: Params | None
    credentials: Credentials | None


@dataclass(slots=True)
class Compute:
    at: At
    cpu: int
    cpu_attributes: list[Attribute] | None
    memory: int
    memory_attributes: list[Attribute] | None
    volumes: list[Storage]
    volume_at: dict[str, At]
    gpu: int
    gpu_attributes: list[Attribute] | None
    parts: dict[str, At] = field(default_factory=dict)
    """Where ``cpu``, ``memory``, … are said."""


@dataclass(slots=True)
class Placement:
    at: At
    attributes: dict[str, str]
    all_of: list[str] | None
    any_of: list[str] | None
    pricing: dict[str, tuple[str, str]]
    pricing_at: dict[str, At]


@dataclass(slots=True)
class Deployed:
    at: At
    profile_at: At
    profile: str
    count: int


@dataclass(slots=True)
class Spec:
    """A whole file."""

    at: At
    version: tuple[int, ...] = (2, 0)
    services: dict[str, ServiceSpec] = field(default_factory=dict)
    services_at: At | None = None
    computes: dict[str, Compute] = field(default_factory=dict)
    placements: dict[str, Placement] = field(default_factory=dict)
    deployment: dict[str, dict[str, Deployed]] = field(default_factory=dict)
    deployed_at: dict[str, At] = field(default_factory=dict)
    endpoints: dict[str, At] = field(default_factory=dict)
    min_window: float | None = None

    @property
    def shared_units(self) -> bool:
        """2.1 and later: services of one placement and profile share a resource unit."""
        return self.version >= (2, 1)
