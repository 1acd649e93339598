"""Errors as HTTP: one mapping for every route.

JSON ``{"code", "message", "path"?, "expected"?, "got"?, "violations"?}``. Tenants' older tools read
the refusals of a manifest as plain text: those routes answer text unless JSON is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import ExceptionHandlersMap

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.gateway.auth import PRINCIPAL

log = get_logger(__name__)

TEXT_ERRORS = "text_errors"
"""In ``opt`` of a route: its refusals are plain text unless JSON is asked for."""


class ViolationBody(msgspec.Struct):
    """One thing that is wrong with an input."""

    message: str
    code: str = ""
    path: str = ""
    expected: str | None = None
    got: str | None = None


class ErrorBody(msgspec.Struct):
    """What every refusal looks like. ``retry_after`` is seconds."""

    code: str
    message: str
    path: str = ""
    expected: str | None = None
    got: str | None = None
    retry_after: float | None = None
    violations: list[ViolationBody] = []


DESCRIBED = {
    400: "the request is malformed",
    401: "no credential, or not for this",
    403: "the credential does not cover all of it",
    404: "there is none",
    409: "somebody else has it",
    413: "the body is too large",
    422: "refused, with every reason",
    429: "too many requests",
    503: "something this depends on does not answer; Retry-After says when to come back",
}


def describe(handlers: Iterable[object]) -> None:
    """Put the refusals into the OpenAPI description of every HTTP route."""
    for handler in handlers:
        if isinstance(handler, HTTPRouteHandler):
            handler.responses = {
                **{
                    status: ResponseSpec(ErrorBody, description=text, generate_examples=False)
                    for status, text in DESCRIBED.items()
                },
                **(handler.responses or {}),
            }


_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    429: "rate_limited",
}


def wants_json(request: Request[Any, Any, Any]) -> bool:
    return "application/json" in request.headers.get("accept", "")


def respond(request: Request[Any, Any, Any], error: LeaseholdError) -> Response[bytes]:
    """The answer for an error."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.kind is Kind.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    handler = request.scope.get("route_handler")
    if (
        handler is not None
        and handler.opt.get(TEXT_ERRORS)
        and not wants_json(request)
        and PRINCIPAL in request.scope.get("state", {})  # who may not ask is told in JSON
    ):
        text = error.message
        if len(error.violations) > 1:
            text += "".join(f"\n{v.path}: {v.message}" for v in error.violations)
        return Response(
            text.encode("utf-8", "replace"),
            status_code=error.kind.http,
            headers=headers,
            media_type="text/plain",
        )
    return Response(
        msgspec.json.encode(error.to_dict()),
        status_code=error.kind.http,
        headers=headers,
        media_type="application/json",
    )


def _leasehold(request: Request[Any, Any, Any], error: LeaseholdError) -> Response[bytes]:
    if error.kind is Kind.INTERNAL:
        log.error("request.failed", path=request.url.path, code=error.code, error=error.message)
    return respond(request, error)


def _http(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    status = error.status_code
    body: dict[str, Any] = {
        "code": _CODES.get(status, f"http_{status}"),
        "message": str(error.detail) or _CODES.get(status, ""),
    }
    if isinstance(error.extra, list):
        body["violations"] = [
            {"message": str(item.get("message", "")), "path": str(item.get("key", ""))}
            for item in error.extra
            if isinstance(item, dict)
        ]
    return Response(
        msgspec.json.encode(body, enc_hook=str),
        status_code=status,
        headers=error.headers or {},
        media_type="application/json",
    )


def _bug(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    log.exception("request.bug", path=request.url.path, error=repr(error))
    return respond(
        request,
        LeaseholdError("internal", "something went wrong here; it was logged", kind=Kind.INTERNAL),
    )


HANDLERS: ExceptionHandlersMap = {
    LeaseholdError: _leasehold,
    HTTPException: _http,
    Exception: _bug,
}
