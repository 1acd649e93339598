"""Run benchmarks: ``python -m bench all``, ``python -m bench NAME … [--quick | --smoke] [--page]``.

Human lines go to stderr, one JSON line a bench to stdout. ``--smoke`` runs each for about two
seconds, only to show that it works. ``--page`` puts the results into the table of
``docs/benchmarks.md``; benches that were not run keep their line.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
import time

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
    failed = 0
    lines = []
    for name in names() if wanted == ["all"] else wanted:
        start = time.monotonic()
        print(f"# {name}", file=sys.stderr)
        try:
            line = importlib.import_module(f"bench.{name}").run(quick)
        except Exception as error:
            failed += 1
            line = {"bench": name, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(line), flush=True)
        lines.append(line)
        print(f"# {name} took {time.monotonic() - start:.1f} s", file=sys.stderr)
    if "--page" in argv:
        page.write(lines)
    return 1 if failed else 0


sys.exit(main(sys.argv[1:]))
