"""A tenant's accounts by name: key files in the home folder, and the short names of leases.

People write ``acme/1`` for deployment 1 of the account ``acme``; the market writes addresses. The
first account is the default where no ``--as`` says otherwise.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.market.accounts import Key, is_address
from leasehold.market.accounts.keys import Algorithm

NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,62}$")


class Accounts:
    """The key files ``<home>/accounts/<name>.json``."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "accounts"

    def new(self, name: str, algorithm: Algorithm = "secp256k1") -> Key:
        """Make an account; LeaseholdError when the name is taken or no name."""
        if not NAME.match(name):
            raise LeaseholdError(
                "bad_account_name",
                f"{name!r} cannot be an account's name: lower-case letters, digits, . _ -",
                kind=Kind.MALFORMED,
                expected=NAME.pattern,
                got=name,
            )
        key = Key.generate(algorithm)
        key.save(self._file(name), name=name)
        return key

    def names(self) -> list[str]:
        """All accounts, oldest first."""
        files = sorted(self.folder.glob("*.json"), key=lambda f: (f.stat().st_mtime, f.name))
        return [file.stem for file in files]

    def key(self, name: str | None = None) -> tuple[str, Key]:
        """``(name, key)`` of the account ``name``, or of the first one."""
        known = self.names()
        if not known and name is None:
            raise LeaseholdError(
                "no_account",
                "there is no account yet; make one with: leasehold account new NAME",
                kind=Kind.NOT_FOUND,
            )
        if name is None:
            name = known[0]
        elif name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none'}"
            raise LeaseholdError(
                "unknown_account",
                f"no account {name!r} here; {hint}",
                kind=Kind.NOT_FOUND,
                got=name,
            )
        return name, Key.load(self._file(name))

    def address(self, name: str) -> str:
        """The address ``name`` stands for; an address stands for itself."""
        if is_address(name):
            return name
        return self.key(name)[1].address

    def name_of(self, address: str) -> str:
        """The name of an address, or the address shortened, for people."""
        for name in self.names():
            if self.key(name)[1].address == address:
                return name
        return f"{address[:9]}…{address[-4:]}" if len(address) > 16 else address

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"
