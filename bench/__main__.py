"""Run benchmarks: ``python -m bench all``, ``python -m bench NAME … [--quick | --smoke] [--page]``.

Human lines go to stderr, one JSON line a bench to stdout. ``--smoke`` runs each for about two
seconds, only to show that it works. ``--page`` puts the results into the table of
``docs/benchmarks.md``; benches that were not run keep their line.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
import time
from typing import Any

import bench
from bench import page

NOT_BENCHES = {"__main__", "harness", "page"}


def names() -> list[str]:
    found = (module.name for module in pkgutil.iter_modules(bench.__path__))
    return sorted(n for n in found if n not in NOT_BENCHES and not n.startswith("_"))


def main(argv: list[str]) -> int:
    quick = "--quick" in argv or "--smoke" in argv
    wanted = [a for a in argv if not a.startswith("-")]
    if not wanted:
        print(__doc__, "\nbenches:", ", ".join(names()), file=sys.stderr)
        return 2
    if wanted == ["all"]:
        wanted = names()
    if len(wanted) == 1:
        lines = [measured(wanted[0], quick)]
        print(json.dumps(lines[0]), flush=True)
    else:
        lines = [apart(name, argv) for name in wanted]
    if "--page" in argv:
        page.write(lines)
    return 1 if any("error" in line for line in lines) else 0


def measured(name: str, quick: bool) -> dict[str, Any]:
    """Run a bench here."""
    start = time.monotonic()
    print(f"# {name}", file=sys.stderr)
    try:
        line = importlib.import_module(f"bench.{name}").run(quick)
    except Exception as error:
        line = {"bench": name, "error": f"{type(error).__name__}: {error}"}
    print(f"# {name} took {time.monotonic() - start:.1f} s", file=sys.stderr)
    return line


def apart(name: str, argv: list[str]) -> dict[str, Any]:
    """Run a bench in a process of its own: what others left in memory is not its to reuse."""
    flags = [a for a in argv if a.startswith("-") and a != "--page"]
    done = subprocess.run(
        [sys.executable, "-m", "bench", name, *flags],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    print(done.stdout, end="", flush=True)
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        return {"bench": name, "error": f"ended with {done.returncode}"}


sys.exit(main(sys.argv[1:]))
