"""The original manager's and worker's settings, as far as they mean something here.

Order: our defaults, then the original's JSON file (``--config``), then its environment variables;
a variable that is not set changes nothing. Each one that was used gives a hint with the name of
ours, because ours is what the documentation speaks of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from leasehold.core.errors import Kind, LeaseholdError


class Original(NamedTuple):
    """Where a setting of the original goes: our section and field, and how its text is read."""

    section: str
    field: str
    read: Callable[[str], Any] = str


def _seconds(text: str) -> float:
    for unit, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)):
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdigit():
            return float(number) * factor
    raise ValueError(f"{text!r} is no duration like 10s")


def _host(text: str) -> str:
    return text.rpartition(":")[0] or text


def _port(text: str) -> int:
    return int(text.rpartition(":")[2])


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _database(text: str) -> str:
    """``postgres://…`` as SQLAlchemy with asyncpg writes it."""
    _, colon, rest = text.partition("://")
    if not colon or not text.startswith("postgres"):
        raise ValueError("expected postgres://user:password@host/name")
    return f"postgresql+asyncpg://{rest.replace('sslmode=', 'ssl=')}"


MANAGER: dict[str, tuple[Original, ...]] = {
    "ADDRESS": (
        Original("dispatch", "manager_host", _host),
        Original("dispatch", "manager_port", _port),
    ),
    "DATABASE_URL": (Original("index", "store", _database),),
    "GRPC_MAX_RECV_SIZE": (Original("dispatch", "max_message_bytes", int),),
}

WORKER: dict[str, tuple[Original, ...]] = {
    "ADDRESS": (Original("dispatch", "worker_host"),),
    "PORT": (Original("dispatch", "worker_port", int),),
    "CHAIN_ID": (
        Original("dispatch", "chain_id"),
        Original("index", "chain_id"),
    ),
    "MANAGERS": (Original("dispatch", "managers", _list),),
    "MANAGER_INTERVAL": (Original("dispatch", "ping_interval", _seconds),),
    "MAXIMUM_HEIGHTS_TO_GET": (Original("index", "max_heights", int),),
    "COSMOS_RPC_ADDR": (Original("index", "rpc"),),
}


def translate(
    table: Mapping[str, tuple[Original, ...]],
    environ: Mapping[str, str],
    file: Path | None = None,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """``({section: {field: value}}, hints)``; LeaseholdError names every value that is wrong."""
    texts: dict[str, tuple[str, str]] = {}
    if file is not None:
        for key, value in _read(file).items():
            if key.upper() in table and value not in ("", None):
                texts[key.upper()] = (str(value), str(file))
    for name in table:
        if environ.get(name):
            texts[name] = (environ[name], "the environment")
    out: dict[str, dict[str, Any]] = {}
    hints: list[str] = []
    for name, (text, source) in texts.items():
        for original in table[name]:
            try:
                value = original.read(text)
            except ValueError as error:
                raise LeaseholdError(
                    "bad_setting", f"{name} from {source}: {error}", path=name, got=text
                ) from None
            out.setdefault(original.section, {})[original.field] = value
        ours = ", ".join(f"{o.section}.{o.field}" for o in table[name])
        hints.append(f"{name} (from {source}) is called {ours} here")
    return out, hints


def _read(file: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise LeaseholdError(
            "config_unreadable", f"cannot read {file}: {error.strerror}", kind=Kind.NOT_FOUND
        ) from None
    except msgspec.MsgspecError as error:
        raise LeaseholdError(
            "bad_config", f"{file} is no JSON object: {error}", kind=Kind.MALFORMED
        ) from None
