"""The provider as one visitor may see it: the gateway's API with the visitor's credential.

``get`` and ``post`` ask once, ``lines`` yields the objects of a stream as they come, ``terminal``
opens a shell. What the credential may not see is refused by the gateway, not hidden by a page.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import msgspec
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import InvalidStatus

from leasehold.core.errors import Kind, LeaseholdError, unavailable
from leasehold.dashboard.sessions import Credential
from leasehold.market.accounts import Key, sign_token
from leasehold.market.client import LedgerClient
from leasehold.model.market import LeaseId

TIMEOUT = httpx.Timeout(10.0, read=130.0)
"""Seconds; pulls and moves take their time."""

TOKEN_LIFETIME = 600.0
"""Seconds a token of an account lives that we sign ourselves."""

LINE_BYTES = 1 << 20
"""Longest line of a stream."""

_KINDS = {kind.http: kind for kind in reversed(Kind)}


class Api:
    """``owner`` is the tenant's address, empty for the operator."""

    def __init__(self, socket: Path, ledger: str, credential: Credential) -> None:
        self.socket = socket
        self.ledger_url = ledger
        self.credential = credential
        self.owner = credential.owner
        self.key: Key | None = None
        if credential.kind == "account":
            self.key = Key.from_secret(credential.algorithm, bytes.fromhex(credential.secret))
            self.owner = self.key.address
        self._token = ("", 0.0)
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(verify=False, uds=str(socket)),  # no TLS there
            base_url="http://gateway",
            timeout=TIMEOUT,
            trust_env=False,
        )
        self.ledger = LedgerClient(ledger, self.key, timeout=10.0)

    @property
    def is_operator(self) -> bool:
        return self.credential.kind == "operator"

    async def close(self) -> None:
        await self._http.aclose()
        await self.ledger.close()

    def lease_path(self, lease: LeaseId, what: str) -> str:
        """The route to something of a lease, the operator's or the tenant's."""
        numbers = f"{lease.dseq}/{lease.gseq}/{lease.oseq}/{what}"
        if self.is_operator:
            return f"/v1/leases/{lease.owner}/{numbers}"
        return f"/lease/{numbers}"

    def deployment_path(self, owner: str, dseq: int, what: str) -> str:
        if self.is_operator:
            return f"/v1/deployments/{owner}/{dseq}/{what}"
        return f"/deployment/{dseq}/{what}"

    async def get(self, path: str, **params: Any) -> Any:
        return await self.request("GET", path, params=params)

    async def post(self, path: str, body: Any = None) -> Any:
        return await self.request("POST", path, json={} if body is None else body)

    async def request(self, method: str, path: str, **options: Any) -> Any:
        """The decoded answer; the gateway's refusal as the LeaseholdError it is."""
        try:
            response = await self._http.request(method, path, headers=self._headers(), **options)
        except httpx.TransportError as error:
            raise _away(error) from None
        if response.is_error:
            raise _refusal(response)
        return msgspec.json.decode(response.content) if response.content else None

    async def lines(self, path: str, **params: Any) -> AsyncIterator[Any]:
        """The objects of a stream of JSON lines, until it ends."""
        try:
            async with self._http.stream(
                "GET", path, params=params, headers=self._headers(), timeout=None
            ) as response:
                if response.is_error:
                    await response.aread()
                    raise _refusal(response)
                rest = b""
                async for chunk in response.aiter_bytes():
                    *whole, rest = (rest + chunk).split(b"\n")
                    for line in whole:
                        if line:
                            yield msgspec.json.decode(line)
                    if len(rest) > LINE_BYTES:
                        raise LeaseholdError("line_too_long", "a line of the stream is too long")
        except httpx.TransportError as error:
            raise _away(error) from None

    @contextlib.asynccontextmanager
    async def terminal(
        self, lease: LeaseId, service: str, replica: int, command: list[str]
    ) -> AsyncIterator[ClientConnection]:
        """A shell with a terminal; frames are those of ``gateway.streams``."""
        query = {"service": service, "tty": "true", "stdin": "true", "podIndex": replica}
        query |= {f"cmd{at}": part for at, part in enumerate(command)}
        url = f"ws://gateway{self.lease_path(lease, 'shell')}?{urlencode(query)}"
        try:
            async with unix_connect(
                str(self.socket), url, additional_headers=self._headers(), compression=None
            ) as connection:
                yield connection
        except InvalidStatus as error:
            raise _refused(error.response.status_code, bytes(error.response.body or b"")) from None
        except OSError as error:
            raise _away(error) from None

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._bearer()}", "Accept": "application/json"}

    def _bearer(self) -> str:
        if self.key is None:
            return self.credential.secret
        token, until = self._token
        now = time.time()
        if now > until - TOKEN_LIFETIME / 2:
            token = sign_token(self.key, now, lifetime=TOKEN_LIFETIME)
            self._token = (token, now + TOKEN_LIFETIME)
        return token


def _away(error: Exception) -> LeaseholdError:
    return unavailable("gateway_unreachable", f"the provider does not answer: {error}")


def _refusal(response: httpx.Response) -> LeaseholdError:
    return _refused(response.status_code, response.content)


def _refused(status: int, content: bytes) -> LeaseholdError:
    kind = _KINDS.get(status, Kind.INTERNAL)
    try:
        body = msgspec.json.decode(content)
        body = body.get("error", body)
        return LeaseholdError(
            str(body["code"]), str(body["message"]), kind=kind, path=body.get("path", ""),
            expected=body.get("expected"), got=body.get("got"),
            retry_after=body.get("retry_after"),
        )  # fmt: skip
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        text = content.decode(errors="replace").strip()[:300]
        return LeaseholdError(f"http_{status}", text or f"HTTP {status}", kind=kind)
