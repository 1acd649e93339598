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


@app.command()
def init(
    name: str = typer.Argument("web", help="What the service is called."),
    image: str = typer.Option(..., "--image", help="Its image, as in docker.io/library/nginx:1.27"),
    port: int = typer.Option(80, "--port", help="The port it listens on."),
    host: list[str] = typer.Option([], "--host", help="A host name it answers to; repeated."),
    env: list[str] = typer.Option([], "--env", "-e", help="NAME=value; repeated."),
    volume: list[str] = typer.Option([], "--volume", help="NAME:/where:SIZE, persistent; repeated"),
    cpu: str = typer.Option("0.5", "--cpu", help="Cores."),
    memory: str = typer.Option("512Mi", "--memory", help="Memory."),
    disk: str = typer.Option("512Mi", "--disk", help="Room for files that do not stay."),
    count: int = typer.Option(1, "--count", help="Replicas."),
    price: str = typer.Option("1000", "--price", help="Most to pay a block, base units."),
    denom: str = typer.Option("uakt", "--denom", help="Of which coin."),
    file: Path = typer.Option(None, "--file", help="Where to write it; default: print it."),
    as_json: bool = typer.Option(False, "--json", help="print the file as JSON"),
) -> None:
    """Write the SDL file of one public service, to begin with; it is checked before."""
    import msgspec

    from leasehold.cli.scaffold import Wanted, scaffold
    from leasehold.model import sdl

    text = scaffold(
        Wanted(
            name=name, image=image, port=port, hosts=host, env=env, volumes=volume, cpu=cpu,
            memory=memory, disk=disk, count=count, price=price, denom=denom,
        )
    )  # fmt: skip
    try:
        hash = sdl.load(text).hash.hex()
    except LeaseholdError as error:
        if not error.violations:
            raise
        # The lines are of a file that nobody has yet.
        raise LeaseholdError.of(
            [msgspec.structs.replace(each, line=None, column=None) for each in error.violations]
        ) from None
    if file is not None:
        try:
            with file.open("x") as out:
                out.write(text)
        except OSError as error:
            taken = isinstance(error, FileExistsError)
            raise LeaseholdError(
                "file_exists" if taken else "file_unwritable",
                f"cannot write {file}: {error.strerror}",
                kind=Kind.CONFLICT if taken else Kind.MALFORMED,
                path=str(file),
            ) from None
    if as_json:
        print(json.dumps({"file": str(file) if file else None, "sdl": text, "hash": hash}))
    elif file is None:
        print(text, end="")
    else:
        print(f"wrote {file}; deploy it with: leasehold deploy {file}")


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
