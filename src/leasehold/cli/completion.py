"""What the shell may complete: names that are cheap to find, and never an error."""

from __future__ import annotations


def lease_names(incomplete: str) -> list[str]:
    """Short names of live leases and names of their services."""
    try:
        from leasehold.cli.reach import Reach

        with Reach(state=None, ledger=None, account=None) as reach:
            rows = reach.rows(closed=False)
    except Exception:
        # A completion that fails offers nothing: there is nowhere to say why.
        return []
    names = {row.short for row in rows} | {name for row in rows for name in row.services}
    return sorted(name for name in names if name.startswith(incomplete))


def account_names(incomplete: str) -> list[str]:
    """Accounts of this user."""
    try:
        from leasehold.app.accounts import Accounts
        from leasehold.cli.state import home_folder

        names = Accounts(home_folder()).names()
    except Exception:
        return []
    return [name for name in names if name.startswith(incomplete)]
