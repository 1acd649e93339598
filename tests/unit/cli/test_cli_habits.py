"""What every command does alike: quick to start, the same options, names, errors and exit codes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from leasehold.cli import COMMANDS, confirm, frame, habits, progress, screen, tables
from leasehold.cli.reach import Row, choose
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.model.market import LeaseId

HEAVY = ("grpc", "litestar", "sqlalchemy", "nicegui", "uvicorn", "pydantic", "httpx", "asyncio")
SDL = Path(__file__).parents[2] / "data/sdl/valid/v2.0/simple/sdl.yaml"


@pytest.mark.parametrize(
    "argv", [["--help"], ["sdl", "validate", str(SDL)], ["config", "show"], ["lease", "--help"]]
)
def test_commands_that_need_nothing_load_nothing(argv: list[str], tmp_path: Path) -> None:
    """Seen to fail with `import httpx` at the top of any of these commands' modules."""
    code = (
        "import sys; from leasehold.cli.frame import run; "
        f"code = run({argv!r}); "
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    env = {"LEASEHOLD_STATE": str(tmp_path), "PATH": "/usr/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"


PROCESSES = {"up", "manager", "worker", "scheduler", "node trust issue"}
"""Run until they are stopped, or print a key and nothing else."""


def leaves() -> Iterator[tuple[str, Any]]:
    for name, (module, _) in COMMANDS.items():
        __import__(module)
        stack = [(name, habits.load(sys.modules[module].app))]
        while stack:
            path, command = stack.pop()
            inner = getattr(command, "commands", {})
            stack += [(f"{path} {n}", c) for n, c in inner.items()]
            if not inner:
                yield path, command


def test_every_command_that_answers_has_json_and_wide() -> None:
    for path, command in leaves():
        options = {option for param in command.params for option in param.opts}
        assert command.help, path
        if "--json" in options:
            assert {"-o", "--output"} <= options, path
        else:
            assert path in PROCESSES, f"{path} has no --json"


def test_json_in_words_of_another_command_is_not_ours() -> None:
    assert frame.wants_json(["lease", "ls", "-o", "json"])
    assert frame.wants_json(["lease", "ls", "--output=json"])
    assert not frame.wants_json(["lease", "shell", "1", "--", "jq", "--json"])


def test_mistyped_commands_and_options_are_met_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert frame.run(["leese"]) == 2
    assert "'lease'" in capsys.readouterr().err
    assert frame.run(["sdl", "vlidate"]) == 2
    assert "'validate'" in capsys.readouterr().err
    assert frame.run(["sdl", "validate", "x", "--jsn"]) == 2
    assert "--json" in capsys.readouterr().err
    assert frame.run(["sdl", "vlidate", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


def test_exit_codes_are_those_of_the_reference() -> None:
    """Scripts rely on them; docs/reference/commands.md is generated from the same table."""
    assert {kind.name: kind.exit_code for kind in Kind} == {
        "MALFORMED": 2, "INVALID": 1, "UNAUTHENTICATED": 3, "FORBIDDEN": 3, "NOT_FOUND": 4,
        "CONFLICT": 5, "TOO_LARGE": 2, "RATE_LIMITED": 6, "INTERNAL": 70, "UNSUPPORTED": 2,
        "UNAVAILABLE": 6, "TIMEOUT": 6,
    }  # fmt: skip
    assert frame.run(["sdl", "validate", "/nonexistent", "--json"]) == Kind.NOT_FOUND.exit_code


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert screen.paint("x", "red", stream=io.StringIO()) == "x"
    assert screen.paint("x", "red", stream=Terminal()) == "\x1b[31mx\x1b[0m"
    monkeypatch.setenv("TERM", "dumb")
    assert screen.paint("x", "red", stream=Terminal()) == "x"
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert screen.paint("x", "red", stream=io.StringIO()) != "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert screen.paint("x", "red", stream=Terminal()) == "x"


def test_tables_hide_wide_columns_and_disarm_what_strangers_wrote(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [["acme/1", "\x1b]0;owned\x07 \x1b[2J\nnext", 7]]
    tables.table(["NAME", "SAYS", "+ID"], rows, empty="")
    narrow = capsys.readouterr().out
    assert "ID" not in narrow
    assert narrow.count("\n") == 2
    assert "\x1b" not in narrow
    assert "\x07" not in narrow
    monkeypatch.setattr(tables, "wide", True)
    tables.table(["NAME", "SAYS", "+ID"], rows, empty="")
    assert "ID" in capsys.readouterr().out
    tables.table(["NAME"], [], empty="no leases")
    assert capsys.readouterr().out == "no leases\n"


def test_watching_shows_what_changed_until_it_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(["a", "a", LeaseholdError("down", "not now", kind=Kind.UNAVAILABLE), "b"])

    app = typer.Typer()

    @app.command("ls")
    def ls(as_json: bool = typer.Option(False, "--json")) -> None:
        said = next(looks, None)
        if said is None:
            raise KeyboardInterrupt
        if isinstance(said, Exception):
            raise said
        print(said)

    @app.command("other")
    def other() -> None: ...

    monkeypatch.setattr(habits.time, "sleep", lambda seconds: None)
    assert habits.load(app).main(["ls", "--watch"], standalone_mode=False) == 130
    assert capsys.readouterr().out == "a\nnot now [down]\nb\n"


def test_without_a_terminal_nothing_is_destroyed_unless_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(LeaseholdError) as refused:
        confirm.confirm("Close it?", yes=False)
    assert refused.value.code == "not_confirmed"
    confirm.confirm("Close it?", yes=True)


def test_progress_is_for_terminals_and_never_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    looked = threading.Event()

    def look() -> progress.Far:
        looked.set()
        raise OSError("nobody answers")

    monkeypatch.setattr(progress, "EVERY", 0.001)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", pipe := io.StringIO())
    with progress.showing(look):
        pass
    assert pipe.getvalue() == ""
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with progress.showing(look):
        assert looked.wait(10)
    assert terminal.getvalue().strip("\r\x1b[K") == ""
    assert progress.line(progress.Far(5, 10, "5 of 10")) == f"[{'█' * 12}{'░' * 12}]  50%  5 of 10"
    assert progress.line(progress.Far(12, 10, "x")).startswith(f"[{'█' * 24}] 100%")
    assert progress.line(progress.Far(0, 0, "resolving")) == "resolving"


def row(owner: str, dseq: int, state: str = "healthy", *services: str, **more: Any) -> Row:
    id = LeaseId(owner, dseq, 1, more.pop("oseq", 1), "akash1provider")
    return Row(id, f"{owner}/{dseq}", state, services=list(services), **more)


ROWS = [
    row("akash1aaa", 1, "healthy", "web"),
    row("akash1aaa", 2, "closed", "old"),
    row("akash1bbb", 1, "waiting", "worker", uris=["http://hello.localhost:8081"]),
    row("akash1bbb", 3, "closed", "job"),
    row("akash1bbb", 3, "failed", "job", oseq=2),
]
OWNERS = {"akash1aaa": "acme"}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("acme/1", 0), ("akash1aaa/1", 0), ("ac/1", 0), ("acme", 0), ("acm", 0), ("web", 0),
        ("acme/2", 1), ("2", 1), ("old", 1), ("akash1b/1", 2), ("hello", 2), ("wo", 2),
        ("hello.localhost", 2), ("akash1bbb/3", 4), ("3", 4), ("akash1bbb/3/1/1", 3), ("job", 4),
    ],
)  # fmt: skip
def test_short_names(name: str, found: int) -> None:
    assert choose(ROWS, name, OWNERS) is ROWS[found]


def test_names_that_fit_several_or_none() -> None:
    with pytest.raises(LeaseholdError) as several:
        choose(ROWS, "1", OWNERS)
    assert several.value.code == "lease_ambiguous"
    assert "akash1aaa/1" in several.value.message
    with pytest.raises(LeaseholdError) as none:
        choose(ROWS, "wbe", OWNERS)
    assert none.value.code == "lease_not_found"
    assert "did you mean web?" in none.value.message
