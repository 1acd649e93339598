"""Makes the fixtures of ``conftest_deploy`` known."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conftest_deploy import busybox_layer, machine, own_host  # noqa: F401
