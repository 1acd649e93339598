"""Where the demo's SDL file is: in the checkout, or in the installed package."""

from __future__ import annotations

from pathlib import Path


def example() -> Path:
    """``examples/hello/deploy.yaml``."""
    checkout = Path(__file__).resolve().parents[4] / "examples" / "hello" / "deploy.yaml"
    return checkout if checkout.exists() else Path(__file__).with_name("hello.yaml")
