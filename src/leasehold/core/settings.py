"""One typed tree of settings, and where each value came from.

A section is a msgspec struct whose fields carry ``msgspec.Meta(description=…)``; sections nest.
Values come from, later wins: the defaults, a TOML file, ``LEASEHOLD_SECTION__KEY`` variables, and
flags. An unknown key is refused with the nearest known one, and everything wrong is reported at
once. A field with ``Meta(extra={"secret": True})`` is never printed.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from leasehold.core.errors import Kind, LeaseholdError, Violation

PREFIX = "LEASEHOLD_"
MASK = "***"

T = TypeVar("T", bound=msgspec.Struct)


class Setting(msgspec.Struct, frozen=True):
    """One known key of the tree."""

    path: str
    type: Any
    default: Any
    description: str
    secret: bool = False


class Loaded(Generic[T]):
    """The settings and, for each key that is not a default, its source."""

    def __init__(self, values: T, sources: dict[str, str]) -> None:
        self.values = values
        self.sources = sources

    def rows(self) -> Iterator[tuple[str, Any, str]]:
        """``(path, value, source)`` of every key, secrets masked."""
        for setting in describe(type(self.values)):
            value: Any = self.values
            for name in setting.path.split("."):
                value = getattr(value, name)
            if setting.secret and value:
                value = MASK
            yield setting.path, value, self.sources.get(setting.path, "default")


def describe(root: type[msgspec.Struct], prefix: str = "") -> list[Setting]:
    """Every key of the tree below ``root``, in order of definition."""
    out: list[Setting] = []
    hints = get_type_hints(root, include_extras=True)
    for field in msgspec.structs.fields(root):
        hint = hints[field.name]
        path = f"{prefix}{field.name}"
        section = _section(hint)
        if section is not None:
            out.extend(describe(section, f"{path}."))
            continue
        text, secret = "", False
        if get_origin(hint) is Annotated:
            for meta in get_args(hint)[1:]:
                if isinstance(meta, msgspec.Meta):
                    text = meta.description or text
                    secret = secret or bool((meta.extra or {}).get("secret"))
        default = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        out.append(Setting(path, hint, default, text, secret))
    return out


def load(
    root: type[T],
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Loaded[T]:
    """Build the tree; LeaseholdError with every violation when anything is wrong."""
    known = {setting.path: setting for setting in describe(root)}
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    wrong: list[Violation] = []

    def take(path: str, value: Any, source: str) -> None:
        setting = known.get(path)
        if setting is None:
            wrong.append(_unknown(path, known, source))
            return
        try:
            values[path] = msgspec.convert(value, setting.type, strict=False)
            sources[path] = source
        except msgspec.ValidationError as error:
            wrong.append(
                Violation(
                    "bad_setting",
                    f"{path} from {source}: {error}",
                    path=path,
                    expected=_type_name(setting.type),
                    got=MASK if setting.secret else repr(value),
                )
            )

    if file is not None:
        for path, value in _flatten(_read_toml(file), known):
            take(path, value, str(file))
    for name, text in (environ or {}).items():
        if name.startswith(PREFIX) and "__" in name:
            path = name.removeprefix(PREFIX).lower().replace("__", ".")
            setting = known.get(path)
            try:
                value = text if setting is None else _parse(text, setting.type)
            except ValueError as error:
                wrong.append(
                    Violation("bad_setting", f"{path} from {name} is no JSON: {error}", path=path)
                )
                continue
            take(path, value, name)
    for path, value in (flags or {}).items():
        if value is not None:
            take(path, value, f"flag --{path.rpartition('.')[2].replace('_', '-')}")
    if wrong:
        raise LeaseholdError.of(wrong, kind=Kind.MALFORMED)
    return Loaded(msgspec.convert(_nest(values), root), sources)


def _section(hint: Any) -> type[msgspec.Struct] | None:
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return hint
    return None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise LeaseholdError(
            "settings_unreadable",
            f"cannot read {file}: {error.strerror}",
            kind=Kind.MALFORMED,
            path=str(file),
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LeaseholdError(
            "settings_malformed", f"{file}: {error}", kind=Kind.MALFORMED, path=str(file)
        ) from None


def _flatten(
    tree: dict[str, Any], known: Mapping[str, Setting], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        path = f"{prefix}{key}"
        inside = any(name.startswith(f"{path}.") for name in known)
        if isinstance(value, dict) and path not in known and inside:
            yield from _flatten(value, known, f"{path}.")
        else:
            yield path, value


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        at = tree
        *parents, last = path.split(".")
        for name in parents:
            at = at.setdefault(name, {})
        at[last] = value
    return tree


def _parse(text: str, hint: Any) -> Any:
    base = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if get_origin(base) in (list, tuple, dict, set, frozenset):
        if text.startswith(("[", "{")):
            return json.loads(text)
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _unknown(path: str, known: Mapping[str, Setting], source: str) -> Violation:
    sections = {name.rpartition(".")[0] for name in known} - {""}
    near = difflib.get_close_matches(path, [*known, *sections], n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return Violation(
        "unknown_setting",
        f"{source} sets {path}, which is no setting{hint}",
        path=path,
        expected=near[0] if near else None,
        got=path,
    )


def _type_name(hint: Any) -> str:
    base = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return getattr(base, "__name__", str(base))
