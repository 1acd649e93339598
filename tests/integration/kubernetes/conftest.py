"""Makes the fixtures of ``conftest_kubernetes`` known."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conftest_kubernetes import cluster, plane, quiet  # noqa: F401
