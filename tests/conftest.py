"""What every test may use."""

from __future__ import annotations

import pytest

from leasehold.core.clock import VirtualClock


@pytest.fixture
def virtual() -> VirtualClock:
    """Virtual time: ``virtual.run(main)`` runs a coroutine function in it."""
    return VirtualClock()
