"""HTTP questions to a manager or scheduler; refusals come back as LeaseholdError."""

from __future__ import annotations

from typing import Any

import httpx

from leasehold.core.errors import Kind, LeaseholdError, Violation

TIMEOUT = 310.0
"""Seconds; a manager gives a fetch 300."""

_KINDS = {kind.http: kind for kind in reversed(Kind)}


def ask(
    url: str,
    *,
    method: str = "GET",
    body: Any = None,
    params: dict[str, Any] | None = None,
    auth: httpx.Auth | None = None,
) -> tuple[Any, httpx.Headers]:
    """The decoded answer and its headers."""
    try:
        answer = httpx.request(method, url, json=body, params=params, auth=auth, timeout=TIMEOUT)
    except httpx.TransportError as error:
        raise LeaseholdError(
            "not_reachable",
            f"nothing answers at {url}: {error}; is it running?",
            kind=Kind.UNAVAILABLE,
            got=url,
        ) from None
    if answer.is_error:
        raise _refusal(answer)
    return (answer.json() if answer.content else None), answer.headers


def _refusal(answer: httpx.Response) -> LeaseholdError:
    kind = _KINDS.get(answer.status_code, Kind.INTERNAL)
    try:
        content = answer.json()
        violations = [
            Violation(v.get("code", ""), v.get("message", ""), path=str(v.get("path", "")))
            for v in content.get("violations", [])
            if isinstance(v, dict)
        ]
        return LeaseholdError(
            content.get("code", "refused"),
            content.get("message", answer.text[:300]),
            kind=kind,
            path=content.get("path", ""),
            expected=content.get("expected"),
            got=content.get("got"),
            violations=violations,
        )
    except ValueError:
        return LeaseholdError("refused", answer.text[:300], kind=kind)
