"""Run simulators: ``python -m sim``, ``python -m sim NAME [--quick] [its own options]``.

Tables go to stdout and, at full size, into ``docs/``.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

import sim


def names() -> list[str]:
    found = (module.name for module in pkgutil.iter_modules(sim.__path__))
    return sorted(name for name in found if not name.startswith("_"))


def main(argv: list[str]) -> int:
    wanted = [a for a in argv[:1] if not a.startswith("-")]
    rest = argv[len(wanted) :]
    for name in wanted or names():
        importlib.import_module(f"sim.{name}").main(rest)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
