"""The payload of every event that crosses a package, one module an entity.

A payload is a frozen msgspec struct registered under a dotted type::

    @payload("lease.won")
    class LeaseWon(msgspec.Struct, frozen=True, kw_only=True):
        lease: LeaseId

Types are never renamed and fields are only added with defaults, so that an old log stays readable.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from leasehold.core.errors import Kind, LeaseholdError

P = TypeVar("P", bound=type[msgspec.Struct])

_by_type: dict[str, type[msgspec.Struct]] = {}
_by_class: dict[type[msgspec.Struct], str] = {}
_decoders: dict[str, msgspec.json.Decoder[Any]] = {}
_encoder = msgspec.json.Encoder()


class Undecodable(LeaseholdError):
    """An event of a type or shape this version does not know; only its entity is affected."""

    def __init__(self, type_: str, reason: str) -> None:
        super().__init__(
            "event_undecodable", f"cannot decode event {type_}: {reason}", kind=Kind.INTERNAL
        )


def payload(type_: str) -> Callable[[P], P]:
    """Register a payload struct under its event type."""

    def register(cls: P) -> P:
        if type_ in _by_type and _by_type[type_] is not cls:
            raise TypeError(f"event type {type_!r} is taken by {_by_type[type_].__qualname__}")
        _by_type[type_] = cls
        _by_class[cls] = type_
        return cls

    return register


def type_of(cls: type[msgspec.Struct]) -> str:
    """The event type a payload class is registered under."""
    return _by_class[cls]


def encode(value: msgspec.Struct) -> tuple[str, bytes]:
    """``(type, JSON)`` of a registered payload."""
    return _by_class[type(value)], _encoder.encode(value)


def decode(type_: str, data: bytes) -> Any:
    """The payload struct, or :class:`Undecodable`."""
    decoder = _decoders.get(type_)
    if decoder is None:
        if type_ not in _by_type:
            _import_all()
        cls = _by_type.get(type_)
        if cls is None:
            raise Undecodable(type_, "unknown type")
        decoder = _decoders[type_] = msgspec.json.Decoder(cls)
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise Undecodable(type_, str(error)) from None


def catalogue() -> dict[str, type[msgspec.Struct]]:
    """Every registered event type, for the reference documentation."""
    _import_all()
    return dict(sorted(_by_type.items()))


def _import_all() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
