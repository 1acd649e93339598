"""What every command gets, so that no command has to bring it.

``-o json|wide|table``  on everything that has ``--json``
``--watch``             on everything that only looks: again and again until Ctrl-C
plain help              no boxes and no colours, so that it can be read and searched anywhere
"""

from __future__ import annotations

import contextlib
import enum
import io
import sys
import time
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from leasehold.cli import tables
from leasehold.core.errors import Kind, LeaseholdError

LOOKS = {"ls", "status", "show", "list", "tasks", "history", "workers", "catalogue", "inventory"}
"""Names of commands that change nothing and end: what ``--watch`` makes sense for."""

CLEAR = "\x1b[H\x1b[2J\x1b[3J"
"""Cursor home, erase the screen and what scrolled out of it."""

LINE = 200
"""Characters a command may take to say in a list what it does."""


class Output(enum.StrEnum):
    """How an answer is written."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"


def _output(
    output: Output = typer.Option(
        Output.TABLE, "--output", "-o", help="table, wide (more columns) or json."
    ),
) -> None: ...


def _watch(
    watch: bool = typer.Option(False, "--watch", help="Again and again, until Ctrl-C."),
    every: float = typer.Option(2.0, "--every", help="With --watch: seconds between.", min=0.1),
) -> None: ...


class Group(TyperGroup):
    """Its help tells the first sentence of each command whole, in as many lines as it takes."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, c.get_short_help_str(limit=LINE))
                    for name, c in commands
                    if c and not c.hidden
                ]
            )


def load(app: typer.Typer) -> Any:
    """The command of ``app`` with all habits."""
    _plain(app)
    command = typer.main.get_command(app)
    _give(command)
    return command


def _plain(app: typer.Typer) -> None:
    app._add_completion = False
    app.rich_markup_mode = None
    app.info.cls = Group
    for group in app.registered_groups:
        if group.typer_instance is not None:
            _plain(group.typer_instance)


def _give(command: Any) -> None:
    for inner in getattr(command, "commands", {}).values():
        _give(inner)
    names = {param.name for param in command.params}
    if "as_json" not in names or "output" in names:
        return
    command.params += _params(_output)
    looks = command.name in LOOKS and "follow" not in names and "watch" not in names
    if looks:
        command.params += _params(_watch)
    command.callback = _wrapped(command.callback)


def _params(declared: Callable[..., None]) -> list[Any]:
    made = typer.main.get_command(_app(declared)).params
    return [param for param in made if param.name != "help"]


def _app(declared: Callable[..., None]) -> typer.Typer:
    app = typer.Typer(add_completion=False)
    app.command()(declared)
    return app


def _wrapped(callback: Callable[..., Any]) -> Callable[..., Any]:
    def call(**given: Any) -> Any:
        output, every = given.pop("output"), given.pop("every", 0.0)
        watched = given.pop("watch", False)
        given["as_json"] = given["as_json"] or output == Output.JSON
        tables.wide = output == Output.WIDE
        if not watched:
            return callback(**given)
        return _watching(lambda: callback(**given), every)

    return call


class _Screen(io.StringIO):
    """What one look prints, kept until it is whole; a terminal if the real one is."""

    def isatty(self) -> bool:
        return sys.__stdout__ is not None and sys.__stdout__.isatty()


def _watching(look: Callable[[], Any], every: float) -> None:
    """Show each look as a whole: over the last one on a terminal, in a pipe when it changed.

    A provider that does not answer just now is said and asked again; any other error ends it.
    """
    before = None
    while True:
        shown = _Screen()
        with contextlib.redirect_stdout(shown):
            try:
                look()
            except typer.Exit:
                pass
            except LeaseholdError as error:
                if error.kind not in (Kind.UNAVAILABLE, Kind.TIMEOUT):
                    raise
                print(f"{error.message} [{error.code}]")
        text = shown.getvalue()
        if sys.stdout.isatty():
            sys.stdout.write(CLEAR + text)
        elif text != before:
            sys.stdout.write(text)
        sys.stdout.flush()
        before = text
        time.sleep(every)
