"""One error type, mapped once to HTTP, gRPC and exit codes.

A refusal says what is wrong, where, what was expected, what was got, and what to do next.
All violations of one input are reported at once: ``LeaseholdError.violations`` holds every
one of them, the error itself repeats the first.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import msgspec


class Kind(enum.Enum):
    """What sort of failure it is: ``(HTTP status, gRPC status name, process exit code)``."""

    MALFORMED = (400, "INVALID_ARGUMENT", 2)
    INVALID = (422, "INVALID_ARGUMENT", 1)
    UNAUTHENTICATED = (401, "UNAUTHENTICATED", 3)
    FORBIDDEN = (403, "PERMISSION_DENIED", 3)
    NOT_FOUND = (404, "NOT_FOUND", 4)
    CONFLICT = (409, "ABORTED", 5)
    TOO_LARGE = (413, "RESOURCE_EXHAUSTED", 2)
    RATE_LIMITED = (429, "RESOURCE_EXHAUSTED", 6)
    INTERNAL = (500, "INTERNAL", 70)
    UNSUPPORTED = (501, "UNIMPLEMENTED", 2)
    UNAVAILABLE = (503, "UNAVAILABLE", 6)
    TIMEOUT = (504, "DEADLINE_EXCEEDED", 6)

    @property
    def http(self) -> int:
        return self.value[0]

    @property
    def grpc(self) -> str:
        return self.value[1]

    @property
    def exit_code(self) -> int:
        return self.value[2]


class Violation(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that is wrong with an input; ``path`` like ``services.web.expose[0].port``."""

    code: str
    message: str
    path: str = ""
    expected: str | None = None
    got: str | None = None
    line: int | None = None
    column: int | None = None


class LeaseholdError(Exception):
    """The error every public function raises.

    ``code`` is stable and machine readable (``snake_case``); ``message`` says what, why and what
    to do next; ``retry_after`` is in seconds and only set where trying again may help.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        kind: Kind = Kind.INVALID,
        path: str = "",
        expected: object = None,
        got: object = None,
        retry_after: float | None = None,
        violations: Sequence[Violation] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.kind = kind
        self.path = path
        self.expected = None if expected is None else str(expected)
        self.got = None if got is None else str(got)
        self.retry_after = retry_after
        self.violations: tuple[Violation, ...] = tuple(violations)

    @classmethod
    def of(cls, violations: Sequence[Violation], *, kind: Kind = Kind.INVALID) -> LeaseholdError:
        """One error out of all ``violations`` (at least one) of an input."""
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        return cls(
            first.code,
            first.message + more,
            kind=kind,
            path=first.path,
            expected=first.expected,
            got=first.got,
            violations=violations,
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form used by the HTTP API, ``--json`` and events."""
        out: dict[str, Any] = {"code": self.code, "message": self.message}
        for key in ("path", "expected", "got", "retry_after"):
            value = getattr(self, key)
            if value not in (None, ""):
                out[key] = value
        if self.violations:
            out["violations"] = [msgspec.to_builtins(v) for v in self.violations]
        return out

    def __repr__(self) -> str:
        return f"LeaseholdError({self.code!r}, {self.message!r})"


def not_found(what: str, got: str, *, hint: str = "") -> LeaseholdError:
    """The usual 404: ``what`` was looked for under the name ``got``."""
    tail = f" {hint}" if hint else ""
    return LeaseholdError(
        f"{what.replace(' ', '_')}_not_found",
        f"no {what} {got!r}.{tail}",
        kind=Kind.NOT_FOUND,
        got=got,
    )


def unavailable(
    code: str, message: str, *, retry_after: float = 5.0, got: object = None
) -> LeaseholdError:
    """Something we depend on does not answer; nothing was changed and trying again may help."""
    return LeaseholdError(code, message, kind=Kind.UNAVAILABLE, retry_after=retry_after, got=got)
