"""A spell called like a service: its keys, mailbox, errors, logs and trigger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.node.spells.bus import Bus
from leasehold.node.spells.files import SpellFiles
from leasehold.node.spells.store import Role, SpellStore


async def call_spell(
    files: SpellFiles,
    bus: Bus,
    spell: str,
    role: Role,
    function: str,
    args: list[Any],
    *,
    sender: str,
    at: float,
) -> dict[str, Any]:
    """Call a spell like a service: its KV, mailbox, errors and trigger.

    Replies have ``success`` and ``error``; reads add ``value``, and scalars ``absent``.
    """
    try:
        value = await _perform(files, bus, spell, role, function, args, sender, at)
    except LeaseholdError as error:
        return {"success": False, "error": error.message}
    except (TypeError, ValueError) as error:
        return {"success": False, "error": f"{function}: {error}"}
    out: dict[str, Any] = {"success": True, "error": "", "value": value}
    if function in ("get_string", "get_u32"):
        out["absent"] = value is None
    return out


async def _perform(
    files: SpellFiles,
    bus: Bus,
    spell: str,
    role: Role,
    function: str,
    args: list[Any],
    sender: str,
    at: float,
) -> Any:
    if function == "push_mailbox":
        (message,) = args
        await files.use(spell, lambda s: s.push_mail(sender, message, at))
        bus.mail(spell, sender)
        return None
    if function in ("pop_mailbox", "store_error") and role != "spell":
        raise LeaseholdError(
            "spell_only", f"only the spell itself may {function}", kind=Kind.FORBIDDEN
        )
    if function == "get_script":
        meta = await files.use(spell, lambda s: s.meta())
        return meta.script if meta else None
    readers: dict[str, Callable[[SpellStore], Any]] = {
        "pop_mailbox": lambda s: s.pop_mail(),
        "get_mailbox": lambda s: s.mail(),
        "get_errors": lambda s: s.errors(),
        "get_logs": lambda s: s.logs(),
        "get_runs": lambda s: msgspec.to_builtins(s.runs()),
        "get_trigger_config": lambda s: msgspec.to_builtins(s.meta()).get("trigger"),
    }
    reader = readers.get(function)
    if reader is not None:
        return await files.use(spell, reader)
    return await files.use(spell, lambda s: store_function(s, role, function, args))


def store_function(store: SpellStore, role: Role, name: str, args: list[Any]) -> Any:
    """One operation on the keys of a spell, by name."""
    writers: dict[str, Callable[..., Any]] = {
        "set_string": store.set_string,
        "set_u32": store.set_u32,
        "set_many": store.set_many,
        "remove": store.remove,
        "list_push": store.list_push,
        "list_pop": store.list_pop,
        "list_remove": store.list_remove,
    }
    readers: dict[str, Callable[..., Any]] = {
        "get_string": store.get_string,
        "get_u32": store.get_u32,
        "exists": store.exists,
        "list_get": store.list_get,
    }
    if name in writers:
        return writers[name](role, *args)
    if name in readers:
        return readers[name](*args)
    raise LeaseholdError(
        "unknown_function",
        f"a spell has no function {name!r}",
        kind=Kind.NOT_FOUND,
        expected=", ".join([*writers, *readers]),
    )


def data_of(store: SpellStore, key: str) -> Any:
    """The value of ``key`` parsed as JSON; a missing key is an error."""
    text = store.get_string(key)
    if text is None:
        raise LeaseholdError("key_absent", f"the spell has no string key {key!r}", path=key)
    return msgspec.json.decode(text)
