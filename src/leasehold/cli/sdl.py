"""``leasehold sdl``: what an SDL file becomes, and everything that is wrong with it.

Works without a running provider and imports nothing but the model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import typer

from leasehold.core.errors import Kind, LeaseholdError, Violation

app = typer.Typer(help="Convert and validate SDL files.", no_args_is_help=True)

STDIN = "-"


@app.command()
def convert(
    file: str = typer.Argument(..., help="the SDL file, or - for standard input"),
    as_json: bool = typer.Option(False, "--json", help="print groups, manifest and hash as JSON"),
) -> None:
    """Show the groups put on the market, the manifest sent to the provider, and its hash."""
    import msgspec

    from leasehold.model import sdl

    loaded = sdl.load(_read(file))
    out: dict[str, Any] = {
        "groups": msgspec.to_builtins(loaded.groups()),
        "manifest": msgspec.to_builtins(loaded.manifest()),
        "hash": loaded.hash.hex(),
    }
    if as_json:
        print(json.dumps(out, ensure_ascii=False))
        return
    for group in loaded.groups():
        print(f"group {group.name}")
        for unit in group.resources:
            given = unit.resource
            print(
                f"  unit {given.id}: {unit.count} × {given.cpu_milli / 1000:g} CPU, "
                f"{_bytes(given.memory_bytes)} memory, {_bytes(given.storage_bytes)} storage"
                + (f", {given.gpu_units} GPU" if given.gpu_units else "")
                + f", at most {unit.price.value.normalize():f} {unit.price.denom} a block"
            )
    for found in loaded.manifest():
        for service in found.all_services:
            print(f"service {service.name}: {service.count} × {service.image}")
    print(f"hash {out['hash']}")


@app.command()
def validate(
    file: str = typer.Argument(..., help="the SDL file, or - for standard input"),
    as_json: bool = typer.Option(False, "--json", help="print the violations as JSON"),
) -> None:
    """List everything that is wrong, with line and column. Exit code 1 when there is anything."""
    import msgspec

    from leasehold.model import sdl

    violations = sdl.validate(_read(file))
    if as_json:
        print(
            json.dumps(
                {"valid": not violations, "violations": msgspec.to_builtins(violations)},
                ensure_ascii=False,
            )
        )
    else:
        for violation in violations:
            print(_line(file, violation))
        if not violations:
            print(f"{file}: valid")
    if violations:
        raise typer.Exit(1)


def _line(file: str, violation: Violation) -> str:
    where = f":{violation.line}:{violation.column}" if violation.line else ""
    text = f"{file}{where}: {violation.path + ': ' if violation.path else ''}{violation.message}"
    if violation.expected:
        text += f" (expected {violation.expected}"
        text += f", got {violation.got})" if violation.got else ")"
    return f"{text} [{violation.code}]"


def _read(file: str) -> str:
    from leasehold.model.sdl.nodes import MAX_SDL_BYTES

    try:
        if file == STDIN:
            data = sys.stdin.buffer.read(MAX_SDL_BYTES + 1)
        else:
            with Path(file).open("rb") as source:
                data = source.read(MAX_SDL_BYTES + 1)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LeaseholdError(
            "sdl_encoding",
            f"{file} is not UTF-8 (byte {error.start})",
            expected="UTF-8",
            got=file,
        ) from None
    except OSError as error:
        raise LeaseholdError(
            "file_unreadable",
            f"cannot read {file}: {error.strerror}",
            kind=Kind.NOT_FOUND,
            path=file,
        ) from None


def _bytes(value: int) -> str:
    for unit, size in (("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)):
        if value >= size:
            return f"{value / size:g} {unit}B"
    return f"{value} B"
