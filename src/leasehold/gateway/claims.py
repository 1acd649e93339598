"""What a token permits: claims, and the questions that are asked of them.

``leases.access`` is *full* (everything of the issuer's), *scoped* (only ``scope``) or *granular*
(per provider, and there full, scoped, or per lease and service). Every part is enforced: provider,
deployment, group, order, scope and service.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from leasehold.core.errors import Kind, LeaseholdError, Violation

SCOPES = (
    "send-manifest",
    "get-manifest",
    "logs",
    "shell",
    "events",
    "status",
    "restart",
    "hostname-migrate",
    "ip-migrate",
    "attestation",
)
Access = Literal["full", "scoped", "granular"]
MAX_ENTRIES = 1000
"""Permissions and deployments in one token."""


class LeasePermission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is permitted for a deployment, or one group or order of it, or some services."""

    dseq: int
    scope: list[str] = []
    gseq: int = 0
    oseq: int = 0
    services: list[str] = []

    def covers(self, dseq: int, gseq: int, oseq: int) -> bool:
        return self.dseq == dseq and self.gseq in (0, gseq) and self.oseq in (0, oseq)


class ProviderPermission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    provider: str
    access: Access
    scope: list[str] = []
    deployments: list[LeasePermission] = []


class LeaseAccess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    access: Access
    scope: list[str] = []
    permissions: list[ProviderPermission] = []


class Claims(msgspec.Struct, frozen=True):
    """The claims of a tenant's token; times in seconds UTC."""

    iss: str
    iat: float
    nbf: float
    exp: float
    version: str
    leases: LeaseAccess
    jti: str = ""


FULL = LeaseAccess("full")


def check(claims: Claims) -> list[Violation]:
    """What is wrong with the form of claims."""
    return list(_check(claims))


def _check(claims: Claims) -> Iterator[Violation]:
    if not claims.iss:
        yield Violation("iss", "a token names its issuer", "iss")
    if claims.version != "v1":
        yield Violation("version", "unknown version", "version", "v1", claims.version[:20])
    leases = claims.leases
    yield from _scopes(leases.scope, "leases.scope")
    if leases.access != "scoped" and leases.scope:
        yield Violation("scope", f"{leases.access} access has no scope", "leases.scope", "none")
    if leases.access == "scoped" and not leases.scope:
        yield Violation("scope", "scoped access needs a scope", "leases.scope", "a scope", "none")
    if leases.access != "granular" and leases.permissions:
        yield Violation(
            "permissions", f"{leases.access} access has no permissions", "leases.permissions"
        )
    if leases.access == "granular" and not leases.permissions:
        yield Violation(
            "permissions", "granular access needs permissions", "leases.permissions", "one", "none"
        )
    providers = [permission.provider for permission in leases.permissions]
    if len(set(providers)) != len(providers):
        yield Violation(
            "permissions", "a provider is named twice", "leases.permissions", "one entry each"
        )
    if sum(1 + len(p.deployments) for p in leases.permissions) > MAX_ENTRIES:
        yield Violation(
            "permissions", "too many permissions", "leases.permissions", f"≤ {MAX_ENTRIES}"
        )
        return
    for at, permission in enumerate(leases.permissions):
        yield from _permission(permission, f"leases.permissions[{at}]")


def _permission(permission: ProviderPermission, path: str) -> Iterator[Violation]:
    yield from _scopes(permission.scope, f"{path}.scope")
    if (permission.access == "scoped") != bool(permission.scope):
        yield Violation("scope", "scope belongs to scoped access, and only to it", f"{path}.scope")
    if (permission.access == "granular") != bool(permission.deployments):
        yield Violation(
            "deployments",
            "deployments belong to granular access, and only to it",
            f"{path}.deployments",
        )
    seen = set()
    for at, lease in enumerate(permission.deployments):
        where = f"{path}.deployments[{at}]"
        yield from _scopes(lease.scope, f"{where}.scope")
        if not lease.scope:
            yield Violation("scope", "a deployment needs a scope", f"{where}.scope")
        if lease.dseq < 1 or lease.gseq < 0 or lease.oseq < 0:
            yield Violation("lease", "sequences start at 1", where, "≥ 1")
        if lease.oseq and not lease.gseq:
            yield Violation("lease", "oseq needs gseq", where, "gseq")
        key = (lease.dseq, lease.gseq, lease.oseq)
        if key in seen:
            yield Violation("lease", "a lease is named twice", where, "one entry each")
        seen.add(key)
        if len(set(lease.services)) != len(lease.services):
            yield Violation("services", "a service is named twice", f"{where}.services")


def _scopes(scope: list[str], path: str) -> Iterator[Violation]:
    for name in scope:
        if name not in SCOPES:
            yield Violation("scope", f"unknown scope {name[:40]!r}", path, ", ".join(SCOPES))
    if len(set(scope)) != len(scope):
        yield Violation("scope", "a scope is named twice", path)


class Principal(msgspec.Struct, frozen=True):
    """Who asks, and what its credential permits here. ``owner`` is never taken from a request."""

    owner: str
    access: LeaseAccess = FULL
    provider: str = ""
    how: str = "jwt"

    def permits(
        self, scope: str, dseq: int, gseq: int = 0, oseq: int = 0, service: str = ""
    ) -> bool:
        """Whether ``scope`` is permitted for a lease (and one service of it, when given).

        With ``gseq`` 0 the whole deployment is meant: a permission for one group of it is not
        enough.
        """
        allowed = self.services(scope, dseq, gseq, oseq)
        return allowed is None or bool(allowed and (not service or service in allowed))

    def services(self, scope: str, dseq: int, gseq: int = 0, oseq: int = 0) -> set[str] | None:
        """The services of a lease ``scope`` is permitted for; None: all, empty: none."""
        access = self.access
        if access.access == "full":
            return None
        if access.access == "scoped":
            return None if scope in access.scope else set()
        for permission in access.permissions:
            if permission.provider != self.provider:
                continue
            if permission.access == "full":
                return None
            if permission.access == "scoped":
                return None if scope in permission.scope else set()
            found: set[str] = set()
            for lease in permission.deployments:
                if not lease.covers(dseq, gseq, oseq) or scope not in lease.scope:
                    continue
                if not lease.services:
                    return None
                found.update(lease.services)
            return found
        return set()

    def reaches(self, scope: str, dseq: int) -> bool:
        """Whether ``scope`` is permitted for any part of a deployment."""
        access = self.access
        if access.access != "granular":
            return self.permits(scope, dseq)
        return any(
            permission.access == "full"
            or (permission.access == "scoped" and scope in permission.scope)
            or any(d.dseq == dseq and scope in d.scope for d in permission.deployments)
            for permission in access.permissions
            if permission.provider == self.provider
        )

    def require(
        self, scope: str, dseq: int, gseq: int = 0, oseq: int = 0, service: str = ""
    ) -> None:
        """Raise UNAUTHENTICATED unless :meth:`permits`."""
        if not self.permits(scope, dseq, gseq, oseq, service):
            raise denied(scope)


def denied(scope: str) -> LeaseholdError:
    """What a credential that does not cover a request gets."""
    return LeaseholdError(
        "unauthorized_access",
        f"the token does not permit {scope!r} here",
        kind=Kind.UNAUTHENTICATED,
        expected=scope,
    )
