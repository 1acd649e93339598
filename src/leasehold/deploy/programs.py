"""Where the programs are that we start: on the path, or in the system directories beside it."""

from __future__ import annotations

import os
import shutil

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find_program(*names: str) -> str | None:
    """The first of ``names`` that is installed."""
    path = f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"
    return next((found for name in names if (found := shutil.which(name, path=path))), None)
