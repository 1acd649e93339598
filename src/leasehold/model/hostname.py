"""Host names: what may be asked for, and what static hosts mode gives.

Names are compared in lower case. A blocklist entry ``foo.com`` blocks exactly that name,
``.foo.com`` blocks ``foo.com`` and every name below it.
"""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Iterable

MAX_HOST = 253
"""Longest DNS name."""

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"^{_LABEL}(\.{_LABEL})*\Z")


def is_subdomain(host: str) -> bool:
    """A lower-case DNS-1123 subdomain: labels of at most 63, 253 in all, no wildcard."""
    return len(host) <= MAX_HOST and _SUBDOMAIN.match(host) is not None


def blocked_by(host: str, blocklist: Iterable[str]) -> str | None:
    """The entry of ``blocklist`` that blocks ``host``, None when none does."""
    name = host.lower()
    for entry in blocklist:
        rule = entry.lower()
        if name == rule or (rule.startswith(".") and (name == rule[1:] or name.endswith(rule))):
            return entry
    return None


def static_host(lease: str, service: str, domain: str) -> str:
    """The generated name of a service: the same for the same lease and service, always."""
    digest = uuid.uuid5(uuid.NAMESPACE_DNS, lease + service).bytes
    label = base64.b32hexencode(digest).decode().lower().rstrip("=")
    return f"{label}.{domain}"
