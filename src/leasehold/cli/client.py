"""How commands talk to a running provider: its HTTP API, with an operator's or a tenant's token."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from leasehold.cli.state import running, state_folder
from leasehold.core.errors import Kind, LeaseholdError, Violation

TIMEOUT = httpx.Timeout(10.0, read=130.0)
"""Seconds; a manifest PUT may take 120."""

_KINDS = {kind.http: kind for kind in reversed(Kind)}


class Api:
    """Requests to one gateway. Refusals come back as LeaseholdError, as the gateway said them.

    ``token`` may be a function: it is asked for each request, since a tenant's tokens expire.
    ``socket``: a Unix socket instead of the host that ``url`` names.
    """

    def __init__(
        self, url: str, token: str | Callable[[], str], *, socket: Path | None = None
    ) -> None:
        self.url = url
        self.token: Callable[[], str] = (lambda: token) if isinstance(token, str) else token
        self._client = httpx.Client(
            base_url=url,
            headers={"Accept": "application/json"},
            timeout=TIMEOUT,
            auth=self._sign,
            transport=httpx.HTTPTransport(uds=str(socket)) if socket is not None else None,
        )

    def _sign(self, request: httpx.Request) -> httpx.Request:
        request.headers["Authorization"] = f"Bearer {self.token()}"
        return request

    def get(self, path: str, **params: Any) -> Any:
        return self.request("GET", path, params={k: v for k, v in params.items() if v is not None})

    def post(self, path: str, body: Any = None) -> Any:
        return self.request("POST", path, json=body)

    def put(self, path: str, body: Any = None) -> Any:
        return self.request("PUT", path, json=body)

    def delete(self, path: str) -> Any:
        return self.request("DELETE", path)

    def request(self, method: str, path: str, **options: Any) -> Any:
        """The decoded JSON answer, None for an empty one."""
        try:
            response = self._client.request(method, path, **options)
        except httpx.TransportError as error:
            raise LeaseholdError(
                "gateway_unreachable",
                f"the gateway at {self.url} does not answer: {error}",
                kind=Kind.UNAVAILABLE,
                retry_after=1.0,
            ) from None
        if response.is_error:
            raise _refusal(response)
        return response.json() if response.content else None

    @contextlib.contextmanager
    def stream(self, path: str, **params: Any) -> Iterator[Iterator[str]]:
        """The lines of a streamed answer, as they come."""
        wanted = {k: v for k, v in params.items() if v is not None}
        with self._client.stream("GET", path, params=wanted, timeout=None) as response:
            if response.is_error:
                response.read()
                raise _refusal(response)
            yield response.iter_lines()

    def close(self) -> None:
        self._client.close()


@contextlib.contextmanager
def operator(state: Path | None = None) -> Iterator[Api]:
    """The API of the provider of this machine, with the operator's token."""
    found = running(state)
    file = state_folder(state) / "operator.token"
    try:
        token = file.read_text().strip()
    except OSError as error:
        raise LeaseholdError(
            "operator_token_unreadable",
            f"cannot read {file}: {error.strerror}; run this as the operator",
            kind=Kind.FORBIDDEN,
            path=str(file),
        ) from None
    api = Api(found.gateway, token)
    try:
        yield api
    finally:
        api.close()


def _refusal(response: httpx.Response) -> LeaseholdError:
    try:
        body = response.json()
    except ValueError:
        body = {}
    return refusal(response.status_code, body, response.text.strip())


def refusal(status: int, body: Any, text: str) -> LeaseholdError:
    """The error an answer with this status and JSON body stands for; ``text`` if it says none."""
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    if not isinstance(body, dict) or "message" not in body:
        body = {"message": text or f"HTTP {status}"}
    violations = [
        Violation(
            str(v.get("code", "")), str(v.get("message", "")), path=str(v.get("path", "")),
            expected=v.get("expected"), got=v.get("got"),
        )
        for v in body.get("violations") or ()
        if isinstance(v, dict)
    ]  # fmt: skip
    return LeaseholdError(
        str(body.get("code", f"http_{status}")),
        str(body["message"]),
        kind=_KINDS.get(status, Kind.INTERNAL),
        path=str(body.get("path", "")),
        expected=body.get("expected"),
        got=body.get("got"),
        retry_after=body.get("retry_after"),
        violations=violations,
    )
