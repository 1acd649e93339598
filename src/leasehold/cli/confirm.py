"""Asking before something is destroyed.

``--yes`` answers beforehand. Without it and without a terminal to ask at, nothing is done: a script
has to say that it means it.
"""

from __future__ import annotations

import sys

import typer

from leasehold.core.errors import Kind, LeaseholdError


def confirm(question: str, *, yes: bool, as_json: bool = False) -> None:
    """Go on, or raise; ``question`` says what will be gone."""
    if yes:
        return
    if as_json or not sys.stdin.isatty():
        raise LeaseholdError(
            "not_confirmed",
            f"{question} Say so with --yes; there is no terminal to ask at.",
            kind=Kind.MALFORMED,
            expected="--yes",
        )
    typer.confirm(question, abort=True)
