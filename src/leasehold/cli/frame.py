"""How a command is found, run, and how its failure is shown."""

from __future__ import annotations

import difflib
import importlib
import itertools
import json
import os
import sys
from typing import Any

import typer
from typer._click.exceptions import ClickException
from typer.core import TyperGroup

from leasehold import __version__
from leasehold.cli import COMMANDS, screen
from leasehold.core.errors import LeaseholdError, Violation

PIPE_CLOSED = 141
"""Exit code when our output is not read any more, as shells give it."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells give it."""


class LazyGroup(TyperGroup):
    """A group that imports a command's module only when that command runs."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            near = difflib.get_close_matches(cmd_name, COMMANDS, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No command {cmd_name!r}.{hint} See 'leasehold --help'.")
        from leasehold.cli.habits import load

        command = load(importlib.import_module(COMMANDS[cmd_name][0]).app)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


root = typer.Typer(
    cls=LazyGroup,
    name="leasehold",
    help="Rent out a Linux machine: turns won leases into running workloads.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@root.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", help="Show the version.", is_eager=True, callback=_version
    ),
) -> None: ...


def run(argv: list[str]) -> int:
    """Run one command line; returns the exit code."""
    try:
        command = typer.main.get_command(root)
        result = command.main(args=argv, prog_name="leasehold", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BrokenPipeError:
        # Whoever read us has left, as in `| head`. SIGPIPE itself stays ignored: with its default
        # action a provider would die of any peer that hangs up.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except LeaseholdError as error:
        show(error, as_json=wants_json(argv))
        return error.kind.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except typer.Exit as leave:
        return leave.exit_code
    except ClickException as error:
        if wants_json(argv):
            show(LeaseholdError("usage", error.format_message()), as_json=True)
        else:
            error.show()
        return error.exit_code


def wants_json(argv: list[str]) -> bool:
    """Whether the answer is wanted as JSON, errors too. What follows ``--`` is somebody else's."""
    own = argv[: argv.index("--")] if "--" in argv else argv
    pairs = set(itertools.pairwise(own))
    return not pairs.isdisjoint({("-o", "json"), ("--output", "json")}) or any(
        word in ("--json", "-ojson", "--output=json") for word in own
    )


def show(error: LeaseholdError, *, as_json: bool) -> None:
    """Print an error for people on stderr, or as JSON on stdout."""
    if as_json:
        print(json.dumps({"error": error.to_dict()}))
        return

    def paint(text: str, style: str) -> str:
        return screen.paint(text, style, stream=sys.stderr)

    listed = error.violations[1:] if len(error.violations) > 1 else ()
    first = _where(error.violations[0]) if error.violations else ""
    print(
        f"{paint('error', 'red')}: {first}{error.message} {paint(f'[{error.code}]', 'dim')}",
        file=sys.stderr,
    )
    for violation in listed:
        print(f"       {_where(violation)}{violation.message}", file=sys.stderr)
    if not listed:
        for name, value in (("expected", error.expected), ("got", error.got)):
            if value:
                print(f"       {paint(name, 'dim')} {value}", file=sys.stderr)


def _where(violation: Violation) -> str:
    """``line 12: services.web.image: ``, as far as it is known."""
    line = f"line {violation.line}: " if violation.line else ""
    return line + (f"{violation.path}: " if violation.path else "")
