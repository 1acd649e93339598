"""What runs: groups of services, their canonical JSON and the version hash.

A tenant puts ``sha256(canonical JSON)`` of its manifest on the market and sends the manifest
itself to the provider; equal hashes prove that it is the one that was paid for. Canonical means:
decoded and encoded again (unknown keys vanish), keys sorted bytewise, no whitespace, arrays in
order, null and empty kept apart, and the escapes of Go's encoder (``<``, ``>``, ``&``, U+2028 and
U+2029), because that is what every other implementation hashes.

Decoding follows Go's too: a null leaves a zero, what follows the first JSON value is ignored,
invalid UTF-8 becomes U+FFFD one byte at a time. msgspec decodes what is well-formed; only what it
refuses takes the slow road through :func:`_lenient`.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import force_setattr

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.model.resources import U32, Resources

MAX_MANIFEST_BYTES = 256 * 1024
"""Largest manifest accepted, in bytes; the largest known real one is about 20 KiB."""

MAX_DEPTH = 64
"""Deepest nesting of JSON accepted; a real manifest has 9 levels."""

Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


def _nothing() -> None:
    return None


class HttpOptions(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """How ingress treats requests. Sizes in bytes, times in milliseconds."""

    max_body_size: U32 = field(default_factory=int)
    read_timeout: U32 = field(default_factory=int)
    send_timeout: U32 = field(default_factory=int)
    next_tries: U32 = field(default_factory=int)
    next_timeout: U32 = field(default_factory=int)
    next_cases: list[str] | None = None
    proxy_buffer_size: U32 = 0

    def __post_init__(self) -> None:
        if self.next_cases == []:
            force_setattr(self, "next_cases", None)


class Expose(Struct, frozen=True, rename="camel"):
    """One way a service is reached: by another service, by a port, or by HTTP ingress."""

    port: U32 = field(default_factory=int)
    external_port: U32 = field(default_factory=int)
    proto: str = field(default_factory=str)
    service: str = field(default_factory=str)
    global_: bool = field(default_factory=bool, name="global")
    hosts: list[str] | None = field(default_factory=_nothing)
    http_options: HttpOptions = field(default_factory=HttpOptions)
    ip: str = field(default_factory=str)
    endpoint_sequence_number: U32 = field(default_factory=int)

    @property
    def outside_port(self) -> int:
        """The port seen from outside: ``externalPort``, or ``port`` when that is 0."""
        return self.external_port or self.port

    @property
    def ingress(self) -> bool:
        """Served by HTTP ingress: TCP, global and on port 80 outside."""
        return self.proto == "TCP" and self.global_ and self.outside_port == 80


class Credentials(Struct, frozen=True):
    """How to log in to the registry of a private image."""

    host: str = field(default_factory=str)
    email: str = field(default_factory=str)
    username: str = field(default_factory=str)
    password: str = field(default_factory=str)


class StorageParams(Struct, frozen=True, rename="camel"):
    """Where a volume is mounted in the service."""

    name: str = field(default_factory=str)
    mount: str = field(default_factory=str)
    read_only: bool = field(default_factory=bool)


class Permissions(Struct, frozen=True):
    read: list[str] | None = field(default_factory=_nothing)


class Tee(Struct, frozen=True):
    """A trusted execution environment: ``cpu`` or ``cpu-gpu``."""

    type: str = field(default_factory=str)
    attestation: bool = field(default_factory=bool)


class ServiceParams(Struct, frozen=True, omit_defaults=True):
    storage: list[StorageParams] | None = field(default_factory=_nothing)
    credentials: Credentials | None = None
    permissions: Permissions | None = None
    tee: Tee | None = None


class ManifestService(Struct, frozen=True, omit_defaults=True):
    """``count`` replicas of one container image and what they are given."""

    name: str = field(default_factory=str)
    image: str = field(default_factory=str)
    command: list[str] | None = field(default_factory=_nothing)
    args: list[str] | None = field(default_factory=_nothing)
    env: list[str] | None = field(default_factory=_nothing)
    resources: Resources = field(default_factory=Resources)
    count: U32 = field(default_factory=int)
    expose: list[Expose] | None = field(default_factory=_nothing)
    params: ServiceParams | None = None
    credentials: Credentials | None = field(default_factory=_nothing)

    @property
    def exposes(self) -> list[Expose]:
        return self.expose or []

    @property
    def mounts(self) -> list[StorageParams]:
        return (self.params.storage if self.params else None) or []


class ManifestGroup(Struct, frozen=True):
    """The services of one group; its name is the group's name on the market."""

    name: str = field(default_factory=str)
    services: list[ManifestService] | None = field(default_factory=_nothing)

    @property
    def all_services(self) -> list[ManifestService]:
        return self.services or []

    def ingress_hosts(self) -> list[str]:
        """Every host its services ask for, in order."""
        return [
            host
            for service in self.all_services
            for expose in service.exposes
            for host in expose.hosts or ()
        ]


Manifest = list[ManifestGroup]

_decoder = msgspec.json.Decoder(Manifest)
_encoder = msgspec.json.Encoder(order="sorted")
_ESCAPES = (
    (b"&", b"\\u0026"),
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)


def decode(data: bytes, *, limit: int = MAX_MANIFEST_BYTES) -> Manifest:
    """The manifest in ``data`` (JSON). Raises kind INVALID with the path of the first mistake."""
    if len(data) > limit:
        raise LeaseholdError(
            "manifest_too_large",
            f"the manifest has {len(data)} bytes; at most {limit} are accepted",
            kind=Kind.TOO_LARGE,
            expected=f"≤ {limit}",
            got=len(data),
        )
    check_depth(data)
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _lenient(data)


def canonical(manifest: Manifest) -> bytes:
    """The bytes that are hashed."""
    out = _encoder.encode(manifest)
    for raw, escaped in _ESCAPES:
        if raw in out:
            out = out.replace(raw, escaped)
    return out


def version_hash(manifest: Manifest) -> bytes:
    """The 32 bytes a tenant puts on the market for ``manifest``."""
    return hashlib.sha256(canonical(manifest)).digest()


def check_depth(data: bytes, limit: int = MAX_DEPTH) -> None:
    """Refuse JSON nested deeper than ``limit`` before a parser sees it."""
    if data.count(b"[") + data.count(b"{") <= limit:
        return
    depth = deepest = 0
    inside = escaped = False
    for byte in data:
        if inside:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                inside = False
        elif byte == 0x22:
            inside = True
        elif byte in b"[{":
            depth += 1
            if depth > deepest:
                deepest = depth
                if deepest > limit:
                    raise LeaseholdError(
                        "json_too_deep",
                        f"the JSON is nested deeper than {limit} levels",
                        expected=f"≤ {limit}",
                    )
        elif byte in b"]}":
            depth -= 1


def _one_each(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("leasehold.one_each", _one_each)


def _lenient(data: bytes) -> Manifest:
    """What msgspec refused, read as Go's decoder would: nulls are zeros, a tail is ignored."""
    text = data.decode("utf-8", "leasehold.one_each")
    try:
        value, _end = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode(text.lstrip())
    except (ValueError, RecursionError) as error:
        where = (
            f" at line {error.lineno}, column {error.colno}"
            if isinstance(error, json.JSONDecodeError)
            else ""
        )
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise LeaseholdError(
            "manifest_undecodable", f"the manifest is not JSON: {reason}{where}", expected="JSON"
        ) from None
    if value is None:
        return []
    try:
        return msgspec.convert(_without_nulls(value), Manifest)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$")
        raise LeaseholdError(
            "manifest_undecodable",
            f"the manifest does not have the right form: {reason}",
            path=path.rstrip("`").lstrip("."),
            expected=reason,
        ) from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _without_nulls(value: Any) -> Any:
    """In Go a null sets nothing: as a member it is as if absent, as an element it is a zero."""
    if isinstance(value, dict):
        return {_scrub(k): _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) if v is not None else _zero_like(value) for v in value]
    return _scrub(value) if isinstance(value, str) else value


def _zero_like(siblings: list[Any]) -> Any:
    """A null among strings is the empty string, among objects the empty object."""
    return "" if any(isinstance(v, str) for v in siblings) else {}


def _scrub(text: str) -> str:
    """Lone surrogates (from ``\\ud800`` escapes) become U+FFFD, as UTF-8 cannot hold them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
