"""A client of certificate authorities that speak ACME (RFC 8555), proving names by HTTP-01.

Every request is a JSON object signed with the account's key, with a nonce the server gave before;
a nonce that is too old is answered with a new one and the request made again. An order for a
certificate goes through four steps: the order, an authorization a name (each shown to be ours by a
text under ``/.well-known/acme-challenge/TOKEN``), the certificate request, the chain.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError

NONCE_TRIES = 5
"""Requests answered ``badNonce`` are repeated so often."""

FIRST_POLL, SLOWEST_POLL = 0.25, 5.0
"""Seconds between looks at what the server is still working on, unless it says when to come."""

ANSWER_BYTES = 1 << 20
"""Bytes of the largest answer read."""

PROBLEM = "urn:ietf:params:acme:error:"

Prove = Callable[[str, "str | None"], Awaitable[None]]
"""``prove(token, text)`` publishes the proof, ``prove(token, None)`` takes it back."""


class Acme:
    """One account at one authority. ``external`` is (key id, HMAC key) where it asks for one."""

    def __init__(
        self,
        directory: str,
        key: ec.EllipticCurvePrivateKey,
        http: httpx.AsyncClient,
        clock: Clock,
        *,
        contact: str = "",
        external: tuple[str, bytes] | None = None,
    ) -> None:
        self.directory = directory
        self.key = key
        self.http = http
        self.clock = clock
        self.contact = contact
        self.external = external
        self._urls: Mapping[str, Any] = {}
        self._nonces: list[str] = []
        self._account = ""
        self._registering = asyncio.Lock()

    async def issue(
        self, names: Sequence[str], key: ec.EllipticCurvePrivateKey, prove: Prove
    ) -> str:
        """A certificate for ``names`` and its chain, PEM; raises with what the authority said."""
        await self._register()
        order, where = await self._post(
            self._urls["newOrder"],
            {"identifiers": [{"type": "dns", "value": name} for name in names]},
        )
        for url in order["authorizations"]:
            await self._authorize(url, prove)
        order = await self._settled(where, ("ready", "valid"))
        if order["status"] == "ready":
            await self._post(order["finalize"], {"csr": _base64(_request(names, key))})
            order = await self._settled(where, ("valid",))
        chain, _ = await self._post(order["certificate"], None, raw=True)
        return str(chain)

    async def _register(self) -> None:
        async with self._registering:
            if self._account:
                return
            answer = await self._request("GET", self.directory)
            self._urls = answer.json()
            body: dict[str, Any] = {"termsOfServiceAgreed": True}
            if self.contact:
                body["contact"] = [f"mailto:{self.contact}"]
            if self.external is not None:
                body["externalAccountBinding"] = self._bound(*self.external)
            _, self._account = await self._post(self._urls["newAccount"], body, by_key=True)

    def _bound(self, kid: str, key: bytes) -> dict[str, str]:
        """Our key, signed with the one the authority gave its customer (RFC 8555, 7.3.4)."""
        head = {"alg": "HS256", "kid": kid, "url": self._urls["newAccount"]}
        protected, payload = _encoded(head), _encoded(self._jwk)
        signature = hmac.digest(key, f"{protected}.{payload}".encode(), "sha256")
        return {"protected": protected, "payload": payload, "signature": _base64(signature)}

    async def _authorize(self, url: str, prove: Prove) -> None:
        authorization, _ = await self._post(url, None)
        if authorization["status"] == "valid":
            return
        name = authorization["identifier"]["value"]
        challenge = next((c for c in authorization["challenges"] if c["type"] == "http-01"), None)
        if challenge is None:
            raise LeaseholdError(
                "acme_no_http_01",
                f"the certificate authority offers no proof by HTTP for {name}",
                kind=Kind.UNSUPPORTED,
                got=name,
            )
        token = challenge["token"]
        async with _proven(prove, token, f"{token}.{self._thumbprint}"):
            if challenge["status"] == "pending":
                await self._post(challenge["url"], {})
            await self._settled(url, ("valid",))

    async def _settled(self, url: str, wanted: Sequence[str]) -> Any:
        """What is at ``url`` once the authority has made up its mind."""
        wait = FIRST_POLL
        while True:
            found, _, answer = await self._send(url, None)
            if found["status"] in wanted:
                return found
            if found["status"] not in ("pending", "processing", "ready"):
                raise _refusal(found)
            await self.clock.sleep(_retry_after(answer) or wait)
            wait = min(wait * 2, SLOWEST_POLL)

    # -- requests ---------------------------------------------------------------------------------

    async def _post(
        self, url: str, payload: Any, *, by_key: bool = False, raw: bool = False
    ) -> tuple[Any, str]:
        """The answer, and the ``Location`` that came with it."""
        found, where, _ = await self._send(url, payload, by_key=by_key, raw=raw)
        return found, where

    async def _send(
        self, url: str, payload: Any, *, by_key: bool = False, raw: bool = False
    ) -> tuple[Any, str, httpx.Response]:
        for _ in range(NONCE_TRIES):
            body = await self._signed(url, payload, by_key=by_key)
            answer = await self._request("POST", url, body)
            if answer.is_success:
                found = answer.text if raw else answer.json()
                return found, answer.headers.get("location", ""), answer
            problem = _problem(answer)
            if problem.get("type") != f"{PROBLEM}badNonce":
                raise _error(answer, problem)
        raise _error(answer, problem)

    async def _signed(self, url: str, payload: Any, *, by_key: bool) -> dict[str, str]:
        while not self._nonces:
            await self._request("HEAD", self._urls["newNonce"])
        head: dict[str, Any] = {"alg": "ES256", "nonce": self._nonces.pop(), "url": url}
        head |= {"jwk": self._jwk} if by_key else {"kid": self._account}
        protected = _encoded(head)
        # No payload at all is how a resource is read.
        text = "" if payload is None else _encoded(payload)
        signature = self.key.sign(f"{protected}.{text}".encode(), ec.ECDSA(hashes.SHA256()))
        r, s = decode_dss_signature(signature)
        return {
            "protected": protected,
            "payload": text,
            "signature": _base64(r.to_bytes(32, "big") + s.to_bytes(32, "big")),
        }

    async def _request(
        self, method: str, url: str, body: Mapping[str, str] | None = None
    ) -> httpx.Response:
        headers = {"content-type": "application/jose+json"} if body else {}
        content = json.dumps(body).encode() if body else None
        try:
            async with self.http.stream(method, url, content=content, headers=headers) as answer:
                read = bytearray()
                async for chunk in answer.aiter_bytes():
                    read += chunk
                    if len(read) > ANSWER_BYTES:
                        raise httpx.DecodingError(f"an answer over {ANSWER_BYTES} bytes")
        except httpx.HTTPError as error:
            raise LeaseholdError(
                "acme_unreachable",
                f"the certificate authority at {url} does not answer: {error!r}",
                kind=Kind.UNAVAILABLE,
            ) from None
        nonce = answer.headers.get("replay-nonce")
        if nonce:
            self._nonces.append(nonce)
        whole = httpx.Response(answer.status_code, headers=answer.headers, content=bytes(read))
        if method != "POST" and not whole.is_success:
            raise _error(whole, _problem(whole))
        return whole

    # -- our key ----------------------------------------------------------------------------------

    @property
    def _jwk(self) -> dict[str, str]:
        numbers = self.key.public_key().public_numbers()
        return {
            "crv": "P-256",
            "kty": "EC",
            "x": _base64(numbers.x.to_bytes(32, "big")),
            "y": _base64(numbers.y.to_bytes(32, "big")),
        }

    @property
    def _thumbprint(self) -> str:
        """RFC 7638: of the members in the order of their names, without spaces."""
        text = json.dumps(self._jwk, sort_keys=True, separators=(",", ":"))
        return _base64(hashlib.sha256(text.encode()).digest())


@asynccontextmanager
async def _proven(prove: Prove, token: str, text: str) -> AsyncIterator[None]:
    await prove(token, text)
    try:
        yield
    finally:
        await prove(token, None)


def _request(names: Sequence[str], key: ec.EllipticCurvePrivateKey) -> bytes:
    """The certificate signing request, DER."""
    # A common name has 64 characters at most; the names proper are the alternative ones.
    common = [x509.NameAttribute(NameOID.COMMON_NAME, n) for n in names[:1] if len(n) <= 64]
    alternative = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(common))
    request = builder.add_extension(alternative, critical=False).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _encoded(value: Any) -> str:
    return _base64(json.dumps(value).encode())


def _problem(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _retry_after(answer: httpx.Response) -> float | None:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isdigit() else None


def _error(answer: httpx.Response, problem: Mapping[str, Any]) -> LeaseholdError:
    kind = Kind.UNAVAILABLE if answer.status_code >= 500 else Kind.INVALID
    if answer.status_code == 429 or problem.get("type") == f"{PROBLEM}rateLimited":
        kind = Kind.RATE_LIMITED
    return LeaseholdError(
        "acme_refused",
        "the certificate authority answered "
        f"{problem.get('detail') or f'status {answer.status_code}'}",
        kind=kind,
        retry_after=_retry_after(answer),
    )


def _refusal(found: Mapping[str, Any]) -> LeaseholdError:
    """Why an authorization or an order became invalid."""
    told = [found.get("error"), *(c.get("error") for c in found.get("challenges", ()))]
    details = [e["detail"] for e in told if isinstance(e, dict) and e.get("detail")]
    return LeaseholdError(
        "acme_not_proven",
        f"the certificate authority did not accept the name: {'; '.join(details) or 'no reason'}",
        kind=Kind.INVALID,
        got=str(found.get("identifier", {}).get("value", "")),
    )
