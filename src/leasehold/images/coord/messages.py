"""The frames of the coordination protocol (package ``gantry.coord.v1``, see proto/gantry).

An ``Envelope`` holds exactly one of four messages. Fields we do not know are ignored; a repeated
message field is merged, as the format demands, by reading its parts as one. Times on the wire are
absolute and hosts' clocks differ, so version 1.1.0 also carries *durations* (numbers 101 and up,
which the original's readers skip): age and silence of a pull, what it received, what remains of a
cooldown, sizes of what is asked for. :attr:`Intent.told` says whether they were there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leasehold.images.ports import ContentKind, FailureClass
from leasehold.p2p import protobuf, varint
from leasehold.p2p.errors import ProtocolViolation
from leasehold.p2p.protobuf import put_bytes, put_int, put_text

UNSPECIFIED, ALREADY_PULLING, STARTED, RECENTLY_FAILED, STALE_CHAIR = range(5)
"""``PleasePullResponse.Result.Outcome``; 4 belongs to 1.1.0's chairs, which we never assign."""

OUTCOMES = ("unspecified", "already_pulling", "started", "recently_failed", "stale_chair")

_AGE, _SILENCE, _RECEIVED, _SIZE, _REMAINING = 101, 102, 103, 104, 105
_SIZES = 101


@dataclass(frozen=True, slots=True)
class PullIntentRequest:
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Intent:
    """What a node knows of a digest (``PullIntentResponse``). Times are UTC seconds, None: absent.

    ``age``, ``silence`` and ``remaining`` are seconds, ``received`` and ``size`` bytes; they are
    there when ``told``.
    """

    has_cached: bool = False
    in_flight: bool = False
    started_at: float | None = None
    hrw_rank: int = 0
    recently_failed: bool = False
    cooldown_until: float | None = None
    failure: FailureClass | None = None
    told: bool = False
    age: float = 0.0
    silence: float = 0.0
    received: int = 0
    size: int | None = None
    remaining: float = 0.0


@dataclass(frozen=True, slots=True)
class PleasePullRequest:
    """``sizes`` goes with ``digests`` (0: unknown); ``authorization`` is never logged or kept."""

    digests: tuple[str, ...] = ()
    registry: str = ""
    repository: str = ""
    kind: ContentKind = ContentKind.BLOB
    sizes: tuple[int, ...] = ()
    authorization: str = ""

    def __repr__(self) -> str:
        return (
            f"PleasePullRequest({len(self.digests)} {self.kind.label}s of"
            f" {self.registry}/{self.repository})"
        )


@dataclass(frozen=True, slots=True)
class PullResult:
    """What became of one digest of a request."""

    digest: str = ""
    outcome: int = UNSPECIFIED
    started_at: float | None = None
    cooldown_until: float | None = None
    failure: FailureClass | None = None
    told: bool = False
    silence: float = 0.0
    remaining: float = 0.0


@dataclass(frozen=True, slots=True)
class PleasePullResponse:
    results: tuple[PullResult, ...] = ()


Message = PullIntentRequest | Intent | PleasePullRequest | PleasePullResponse


def encode(message: Message, *, durations: bool = False) -> bytes:
    """One frame: length and envelope. ``durations`` adds the fields of 1.1.0."""
    if isinstance(message, PullIntentRequest):
        number, body = 1, put_text(1, message.digest)
    elif isinstance(message, Intent):
        number, body = 2, _intent(message, durations)
    elif isinstance(message, PleasePullRequest):
        number, body = 3, _please_pull(message)
    else:
        number = 4
        body = b"".join(put_bytes(1, _result(r, durations)) for r in message.results)
    envelope = put_bytes(number, body)
    return varint.encode(len(envelope)) + envelope


def decode(envelope: bytes) -> Message:
    """The message of an envelope (without its length); :class:`ProtocolViolation` otherwise."""
    try:
        number, body = 0, b""
        for field, wire, value in protobuf.fields(envelope):
            if 1 <= field <= 4 and wire == protobuf.BYTES:
                assert isinstance(value, bytes)
                # The last member of a oneof counts; more of the same one is merged into it.
                body = body + value if field == number else value
                number = field
        if number == 1:
            return PullIntentRequest(_texts(body, 1))
        if number == 2:
            return _read_intent(body)
        if number == 3:
            return _read_please_pull(body)
        if number == 4:
            return PleasePullResponse(
                tuple(_read_result(_bytes(v)) for n, _, v in protobuf.fields(body) if n == 1)
            )
    except protobuf.ProtobufError as error:
        raise ProtocolViolation("coord_malformed", f"coordination message: {error}") from None
    raise ProtocolViolation("coord_malformed", "an empty coordination envelope")


# writing


def _timestamp(at: float) -> bytes:
    # Microseconds: what a double still holds of today's UTC seconds.
    micros = round(at * 1e6)
    return put_int(1, micros // 1_000_000) + put_int(2, micros % 1_000_000 * 1000)


def _millis(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _intent(message: Intent, durations: bool) -> bytes:
    parts = [put_int(1, message.has_cached), put_int(2, message.in_flight)]
    if message.started_at is not None:
        parts.append(put_bytes(3, _timestamp(message.started_at)))
    parts += [put_int(4, message.hrw_rank), put_int(5, message.recently_failed)]
    if message.cooldown_until is not None:
        parts.append(put_bytes(6, _timestamp(message.cooldown_until)))
    parts.append(put_int(7, message.failure or 0))
    if durations and message.in_flight:
        # One more than the value, so that zero is told as well: proto3 does not write zeros.
        parts += [
            put_int(_AGE, _millis(message.age) + 1),
            put_int(_SILENCE, _millis(message.silence)),
            put_int(_RECEIVED, message.received),
            put_int(_SIZE, message.size or 0),
        ]
    if durations and message.recently_failed:
        parts.append(put_int(_REMAINING, _millis(message.remaining) + 1))
    return b"".join(parts)


def _please_pull(message: PleasePullRequest) -> bytes:
    parts = [put_bytes(1, digest.encode()) for digest in message.digests]
    parts += [
        put_text(2, message.registry),
        put_text(3, message.repository),
        put_int(4, message.kind),
        put_text(5, message.authorization),
    ]
    if any(message.sizes):
        parts.append(put_bytes(_SIZES, b"".join(varint.encode(size) for size in message.sizes)))
    return b"".join(parts)


def _result(result: PullResult, durations: bool) -> bytes:
    parts = [put_text(1, result.digest), put_int(2, result.outcome)]
    if result.started_at is not None:
        parts.append(put_bytes(3, _timestamp(result.started_at)))
    if result.cooldown_until is not None:
        parts.append(put_bytes(4, _timestamp(result.cooldown_until)))
    parts.append(put_int(5, result.failure or 0))
    if durations and result.outcome in (ALREADY_PULLING, STARTED):
        parts.append(put_int(_SILENCE, _millis(result.silence) + 1))
    if durations and result.outcome == RECENTLY_FAILED:
        parts.append(put_int(_REMAINING, _millis(result.remaining) + 1))
    return b"".join(parts)


# reading


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise protobuf.ProtobufError("expected bytes, got a number")
    return value


def _texts(body: bytes, wanted: int) -> str:
    out = ""
    for number, wire, value in protobuf.fields(body):
        if number == wanted and wire == protobuf.BYTES:
            out = protobuf.text(value)
    return out


def _read_timestamp(raw: bytes) -> float:
    seconds = nanos = 0
    for number, wire, value in protobuf.fields(raw):
        if wire == protobuf.VARINT:
            assert isinstance(value, int)
            if number == 1:
                seconds = protobuf.int64(value)
            elif number == 2:
                nanos = protobuf.int32(value)
    # One exact division: the nearest float to what was written, as its sender had it.
    return (seconds * 10**9 + nanos) / 10**9


def _failure(value: int) -> FailureClass | None:
    value = protobuf.int32(value)
    if value == 0:
        return None
    # A class of a later version is somebody's own trouble until we know better.
    return FailureClass(value) if 1 <= value <= 4 else FailureClass.TRANSIENT


def _split(raw: bytes) -> tuple[dict[int, int], dict[int, bytes]]:
    """The last number and the concatenated bytes of each field."""
    numbers: dict[int, int] = {}
    blobs: dict[int, bytes] = {}
    for number, wire, value in protobuf.fields(raw):
        if wire == protobuf.VARINT:
            assert isinstance(value, int)
            numbers[number] = value
        elif wire == protobuf.BYTES:
            assert isinstance(value, bytes)
            blobs[number] = blobs[number] + value if number in blobs else value
    return numbers, blobs


def _time(blobs: dict[int, bytes], number: int) -> float | None:
    raw = blobs.get(number)
    return None if raw is None else _read_timestamp(raw)


def _read_intent(body: bytes) -> Intent:
    numbers, blobs = _split(body)
    get = numbers.get
    return Intent(
        has_cached=bool(get(1)),
        in_flight=bool(get(2)),
        started_at=_time(blobs, 3),
        hrw_rank=protobuf.int32(get(4, 0)),
        recently_failed=bool(get(5)),
        cooldown_until=_time(blobs, 6),
        failure=_failure(get(7, 0)),
        told=_AGE in numbers or _REMAINING in numbers,
        age=max(0, get(_AGE, 1) - 1) / 1000,
        silence=get(_SILENCE, 0) / 1000,
        received=get(_RECEIVED, 0),
        size=get(_SIZE) or None,
        remaining=max(0, get(_REMAINING, 1) - 1) / 1000,
    )


def _read_please_pull(body: bytes) -> PleasePullRequest:
    digests: list[str] = []
    registry = repository = authorization = ""
    kind = 0
    sizes: list[int] = []
    for number, wire, value in protobuf.fields(body):
        if number == 4 and wire == protobuf.VARINT:
            assert isinstance(value, int)
            kind = protobuf.int32(value)
        elif wire == protobuf.BYTES:
            assert isinstance(value, bytes)
            if number == 1:
                digests.append(protobuf.text(value))
            elif number == 2:
                registry = protobuf.text(value)
            elif number == 3:
                repository = protobuf.text(value)
            elif number == 5:
                authorization = protobuf.text(value)
            elif number == _SIZES:
                sizes += _packed(value)
    return PleasePullRequest(
        digests=tuple(digests),
        registry=registry,
        repository=repository,
        kind=ContentKind(kind) if kind in (1, 2, 3) else ContentKind.BLOB,
        sizes=tuple(sizes) if len(sizes) == len(digests) else (),
        authorization=authorization,
    )


def _packed(raw: bytes) -> list[int]:
    out, at = [], 0
    while at < len(raw):
        try:
            found = varint.decode(raw, at)
        except varint.VarintError:
            found = None
        if found is None:
            raise protobuf.ProtobufError("a truncated list of sizes")
        value, at = found
        out.append(value)
    return out


def _read_result(raw: bytes) -> PullResult:
    numbers, blobs = _split(raw)
    digest = b""
    for number, wire, value in protobuf.fields(raw):
        if number == 1 and wire == protobuf.BYTES:
            digest = _bytes(value)
    get = numbers.get
    outcome = protobuf.int32(get(2, 0))
    return PullResult(
        digest=protobuf.text(digest),
        outcome=outcome if 0 <= outcome <= STALE_CHAIR else UNSPECIFIED,
        started_at=_time(blobs, 3),
        cooldown_until=_time(blobs, 4),
        failure=_failure(get(5, 0)),
        told=_SILENCE in numbers or _REMAINING in numbers,
        silence=max(0, get(_SILENCE, 1) - 1) / 1000,
        remaining=max(0, get(_REMAINING, 1) - 1) / 1000,
    )


def sizes_of(message: PleasePullRequest) -> Sequence[int | None]:
    """The size of each digest, None where it was not told."""
    if not message.sizes:
        return [None] * len(message.digests)
    return [size or None for size in message.sizes]
