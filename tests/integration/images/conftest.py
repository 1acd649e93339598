"""Registries with a door."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from leasehold.images.ports import Credentials

GOOD = Credentials("tenant", "open sesame")
HTPASSWD = "tenant:$2b$04$FiwoNfHQu3K69gLdgEstSOpLt/9nZktES5MSRXJzcvjMzYFJ9dhqS\n"


@pytest.fixture
def private_registry(
    tmp_path: Path, registry_starter: Callable[..., tuple[subprocess.Popen[bytes], Any]]
) -> Iterator[tuple[Any, Credentials]]:
    """A docker-registry that lets only ``GOOD`` in."""
    users = tmp_path / "htpasswd"
    users.write_text(HTPASSWD)
    process, found = registry_starter(
        tmp_path / "private", extra=f"auth: {{htpasswd: {{realm: test, path: '{users}'}}}}\n"
    )
    yield found, GOOD
    process.kill()
    process.wait(10)
