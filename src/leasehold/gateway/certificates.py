"""Client certificates: tenants' self-signed certificates, registered on the market.

Python's TLS refuses a certificate it does not know while shaking hands, so every registered one is
loaded into the live context, when the market announces it and by looking now and then. That only
opens the door: each *request* then asks whether the certificate is registered and not revoked, byte
for byte the one on the market, within its dates and made for clients. Nothing is remembered longer
than a moment, so a revoked certificate stops working while its connection is still open.
"""

from __future__ import annotations

import hashlib
import ssl
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.service import Service
from leasehold.gateway.settings import GatewaySettings

log = get_logger(__name__)

KNOWN = 10_000
"""Certificates whose parsed form is remembered."""


class Registered(msgspec.Struct, frozen=True):
    """A certificate on the market. ``serial`` is decimal text."""

    owner: str
    serial: str
    pem: str
    valid: bool = True


class Registry(Protocol):
    """Certificates on the market. UNAVAILABLE when it does not answer."""

    async def all(self) -> Sequence[Registered]:
        """Every certificate that is valid now."""
        ...

    async def find(self, owner: str, serial: str) -> Registered | None: ...


class _Parsed(msgspec.Struct, frozen=True):
    owner: str
    serial: str
    not_before: float
    not_after: float


class ClientCertificates(Service):
    """Knows who a client certificate belongs to. Give its :meth:`factory` to the server."""

    def __init__(
        self,
        registry: Registry,
        *,
        clock: Clock | None = None,
        settings: GatewaySettings | None = None,
    ) -> None:
        super().__init__("client certificates", clock=clock)
        self.registry = registry
        self.settings = settings or GatewaySettings()
        self._context: ssl.SSLContext | None = None
        self._loaded: set[bytes] = set()
        self._parsed: OrderedDict[bytes, _Parsed] = OrderedDict()
        self._checked: OrderedDict[bytes, float] = OrderedDict()

    async def start(self) -> None:
        await self._look()
        self.spawn(self._keep_looking(), name="refresh")

    async def _keep_looking(self) -> None:
        while True:
            await self.clock.sleep(self.settings.certificates_refresh_s)
            await self._look()

    async def _look(self) -> None:
        try:
            for found in await self.registry.all():
                self.announce(found.pem)
        except LeaseholdError as error:
            log.warning("certificates.refresh_failed", code=error.code, error=error.message)

    def announce(self, pem: str) -> None:
        """A certificate was registered: connections may use it from now on."""
        try:
            der = x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)
        except ValueError as error:
            log.warning("certificate.unreadable", error=str(error))
            return
        if der in self._loaded:
            return
        self._loaded.add(der)
        if self._context is not None:
            self._context.load_verify_locations(cadata=der)

    def factory(self, _config: object, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        """uvicorn's ``ssl_context_factory``: TLS 1.3, a client certificate asked for."""
        context = default()
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_OPTIONAL
        # A registered certificate is its own root, whatever its CA flag says.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        for der in self._loaded:
            context.load_verify_locations(cadata=der)
        self._context = context
        return context

    async def owner(self, certificate: bytes) -> str:
        """The owner of a client certificate (DER); UNAUTHENTICATED when it is not valid now."""
        digest = hashlib.sha256(certificate).digest()
        parsed = self._parsed.get(digest) or self._parse(digest, certificate)
        now = self.clock.now()
        if not parsed.not_before <= now < parsed.not_after:
            raise _refused("it is not within its dates")
        fresh = self.clock.monotonic() - self.settings.certificate_cache_s
        if self._checked.get(digest, float("-inf")) < fresh:
            found = await self.registry.find(parsed.owner, parsed.serial)
            if found is None or not found.valid:
                self._checked.pop(digest, None)
                raise _refused("it is not registered on the market, or was revoked")
            registered = x509.load_pem_x509_certificate(found.pem.encode())
            if registered.public_bytes(Encoding.DER) != certificate:
                raise _refused("it is not the one that is registered")
            self._checked[digest] = self.clock.monotonic()
            if len(self._checked) > KNOWN:
                self._checked.popitem(last=False)
        return parsed.owner

    def _parse(self, digest: bytes, der: bytes) -> _Parsed:
        try:
            certificate = x509.load_der_x509_certificate(der)
            subject = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            issuer = certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
        except ValueError as error:
            raise _refused(f"it cannot be read: {error}") from None
        if len(subject) != 1 or [n.value for n in subject] != [n.value for n in issuer]:
            raise _refused("it is not self-signed by its owner")
        try:
            usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
                raise _refused("it is not made for clients")
        except x509.ExtensionNotFound:
            raise _refused("it does not say that it is made for clients") from None
        parsed = _Parsed(
            str(subject[0].value),
            str(certificate.serial_number),
            certificate.not_valid_before_utc.timestamp(),
            certificate.not_valid_after_utc.timestamp(),
        )
        self._parsed[digest] = parsed
        if len(self._parsed) > KNOWN:
            self._parsed.popitem(last=False)
        return parsed


def _refused(why: str) -> LeaseholdError:
    return LeaseholdError(
        "client_certificate", f"the client certificate is refused: {why}", kind=Kind.UNAUTHENTICATED
    )
