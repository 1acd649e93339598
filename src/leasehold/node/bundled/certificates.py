"""Initialisation of ``trust-graph``: roots first, then chains; old ones are warnings.

The file has ``roots`` (peer id to the longest chain it allows) and ``certificates`` (chains, see
:mod:`leasehold.node.trust`). An expired certificate must not keep a node from starting: it is left
out, and the package says so. A forged or malformed one fails the initialisation.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from leasehold.core.errors import LeaseholdError
from leasehold.node import trust
from leasehold.node.distro import Caller, Report

MAX_WARNINGS = 5


class TrustGraphInit:
    """``bundle`` is shipped; ``own`` adds to it, or takes its place with ``replace``."""

    def __init__(self, bundle: bytes, own: Path | None, *, replace: bool) -> None:
        self.bundle = bundle
        self.own = own
        self.replace = replace and own is not None

    @property
    def key(self) -> Any:
        parts = [b"" if self.replace else self.bundle, self._own_bytes(missing=b"missing")]
        return [hashlib.sha256(part).hexdigest() for part in parts]

    def _own_bytes(self, missing: bytes | None = None) -> bytes:
        if self.own is None:
            return b""
        try:
            return self.own.read_bytes()
        except OSError as error:
            if missing is not None:
                return missing
            raise LeaseholdError(
                "certificates_unreadable",
                f"system_services.trust_graph.certificates: {error}",
                path="system_services.trust_graph.certificates",
                got=str(self.own),
            ) from None

    def read(self) -> tuple[dict[str, int], list[Any]]:
        """Roots and chains of the files, as they stand there."""
        roots: dict[str, int] = {}
        chains: list[Any] = []
        for name, data in (("bundle", self.bundle), (str(self.own), self._own_bytes())):
            if not data or (name == "bundle" and self.replace):
                continue
            try:
                parsed = json.loads(data)
                roots.update(parsed["roots"])
                chains += parsed["certificates"]
            except (ValueError, KeyError, TypeError) as error:
                raise LeaseholdError(
                    "bad_certificates", f"{name} is no certificate file: {error!r}", path=name
                ) from None
        return roots, chains

    async def weights(self) -> dict[str, int]:
        """What the files alone say, for a process without a ``trust-graph`` to ask."""
        roots, chains = self.read()
        now, valid = int(time.time()), []
        for chain in chains:
            with contextlib.suppress(trust.BadCertificate):
                trust.check_chain(chain, now)
                valid.append(chain)
        return trust.weights(roots, valid, (), now)

    async def __call__(self, caller: Caller, report: Report) -> list[str]:
        roots, chains = self.read()
        await caller.call("trust-graph", "reset", roots)
        for peer, length in roots.items():
            await caller.call("trust-graph", "set_root", peer, length)
        expired: list[str] = []
        now = int(time.time())
        for chain in chains:
            try:
                await caller.call("trust-graph", "insert_cert", chain, now)
            except LeaseholdError as error:
                if " expired " not in error.message:
                    raise
                expired.append(error.message.partition(": ")[2])
        if not expired:
            return []
        more = f" and {len(expired) - MAX_WARNINGS} more" if len(expired) > MAX_WARNINGS else ""
        shown = "; ".join(expired[:MAX_WARNINGS]) + more
        return [
            f"{len(expired)} of {len(chains)} certificates are too old and were left out: {shown}. "
            "Set system_services.trust_graph.certificates to newer ones."
        ]
