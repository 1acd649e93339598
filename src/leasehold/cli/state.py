"""Where things are: the state folder of a provider, the home of a tenant, and what runs now.

``leasehold up`` writes ``run.json`` into its state folder once it is ready; every other command
reads it to find the gateway, the ledger and the ingress of this machine without being told.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import msgspec

from leasehold.app.running import Running
from leasehold.core.errors import Kind, LeaseholdError


def state_folder(given: Path | None = None) -> Path:
    """``--state``, else ``LEASEHOLD_STATE``, else the usual place of this user."""
    if given is not None:
        return given
    if os.environ.get("LEASEHOLD_STATE"):
        return Path(os.environ["LEASEHOLD_STATE"])
    if os.geteuid() == 0:
        return Path("/var/lib/leasehold")
    return Path.home() / ".local" / "state" / "leasehold"


def home_folder() -> Path:
    """Where a tenant's accounts and deployments are: ``LEASEHOLD_HOME``, else the config folder."""
    if os.environ.get("LEASEHOLD_HOME"):
        return Path(os.environ["LEASEHOLD_HOME"])
    return Path(os.environ.get("XDG_CONFIG_HOME", Path.home() / ".config")) / "leasehold"


def running(state: Path | None = None) -> Running:
    """The provider that runs on this machine; LeaseholdError ``not_up`` when none does."""
    folder = state_folder(state)
    file = folder / "run.json"
    try:
        found = msgspec.json.decode(file.read_bytes(), type=Running)
        with contextlib.suppress(PermissionError):  # it lives, and is another user's
            os.kill(found.pid, 0)
        if _ended(found.pid):
            raise ProcessLookupError(found.pid)
    except (OSError, msgspec.MsgspecError):
        raise LeaseholdError(
            "not_up",
            f"no provider runs from {folder}; start one with: leasehold up",
            kind=Kind.UNAVAILABLE,
            path=str(file),
        ) from None
    return found


def _ended(pid: int) -> bool:
    """Whether it is dead already and only waits for its parent to hear of it."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(msgspec.to_builtins(value), indent=2))
