"""TLS 1.3 between nodes, pinned to peer ids.

A node's certificate is self-signed by a fresh key and carries, as libp2p's TLS specification says,
its identity key and that key's signature over the certificate's: so whoever knows the peer id (from
the cluster's membership) knows whom it talks to, without any authority or shared secret. Ordinary
verification has nothing to say about such a certificate; ours runs after the handshake and before
the first byte of a request.
"""

from __future__ import annotations

import datetime
import os
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID, ObjectIdentifier

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.p2p.keys import KeyPair, PeerId, verify

EXTENSION = ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
"""libp2p's ``SignedKey`` (libp2p TLS specification)."""

PREFIX = b"libp2p-tls-handshake:"
VALID_DAYS = 365
SLACK = datetime.timedelta(hours=1)
"""Clocks of two nodes may differ by so much."""


def certificate(keys: KeyPair, clock: Clock) -> tuple[bytes, bytes]:
    """(certificate, private key) in PEM for this node."""
    private = ec.generate_private_key(ec.SECP256R1())
    spki = private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    signed = _sequence(_octets(keys.public) + _octets(keys.sign(PREFIX + spki)))
    now = datetime.datetime.fromtimestamp(clock.now(), datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leasehold node")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SLACK)
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.UnrecognizedExtension(EXTENSION, signed), critical=True)
        .sign(private, hashes.SHA256())
    )
    return (
        made.public_bytes(serialization.Encoding.PEM),
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def write_files(keys: KeyPair, clock: Clock, folder: Path) -> tuple[Path, Path]:
    """A fresh certificate in ``folder``: (certificate file, key file of mode 0600)."""
    folder.mkdir(parents=True, exist_ok=True)
    cert, key = certificate(keys, clock)
    cert_path, key_path = folder / "transfer.crt", folder / "transfer.key"
    for path, content in ((cert_path, cert), (key_path, key)):
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "wb") as file:
            file.write(content)
    return cert_path, key_path


def server_context(cert: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.3 only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(cert, key)
    return context


def client_context() -> ssl.SSLContext:
    """TLS 1.3 without the usual verification: :func:`check` is the verification."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def check(der: bytes | None, expected: str, now: float) -> None:
    """Refuse the connection unless ``der`` proves the peer id ``expected`` (base58)."""
    got = peer_id_of(der, now) if der else None
    if got is None or str(got) != expected:
        raise LeaseholdError(
            "wrong_peer",
            "the node at that address is not the one we meant to reach",
            kind=Kind.FORBIDDEN,
            expected=expected,
            got=None if got is None else str(got),
        )


def peer_id_of(der: bytes, now: float) -> PeerId | None:
    """The peer a certificate belongs to; None when it proves nothing."""
    try:
        found = x509.load_der_x509_certificate(der)
        moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
        if not (found.not_valid_before_utc - SLACK <= moment <= found.not_valid_after_utc + SLACK):
            return None
        extension = found.extensions.get_extension_for_oid(EXTENSION).value
        assert isinstance(extension, x509.UnrecognizedExtension)
        public, signature = _signed_key(extension.value)
        spki = found.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        # The handshake proved the certificate's key; it must also have signed the certificate.
        found.verify_directly_issued_by(found)
    except Exception:  # whatever is wrong with a stranger's certificate, it proves nothing
        return None
    return PeerId.of(public) if verify(public, PREFIX + spki, signature) else None


def _octets(data: bytes) -> bytes:
    return b"\x04" + _length(len(data)) + data


def _sequence(data: bytes) -> bytes:
    return b"\x30" + _length(len(data)) + data


def _length(size: int) -> bytes:
    if size < 128:
        return bytes((size,))
    raw = size.to_bytes(2, "big").lstrip(b"\0")
    return bytes((0x80 | len(raw),)) + raw


def _signed_key(raw: bytes) -> tuple[bytes, bytes]:
    inner, rest = _element(raw, 0x30)
    public, inner = _element(inner, 0x04)
    signature, inner = _element(inner, 0x04)
    if rest or inner:
        raise ValueError("trailing bytes")
    return public, signature


def _element(raw: bytes, tag: int) -> tuple[bytes, bytes]:
    if len(raw) < 2 or raw[0] != tag:
        raise ValueError("unexpected element")
    size, start = raw[1], 2
    if size & 0x80:
        count = size & 0x7F
        if not 0 < count <= 2:
            raise ValueError("unexpected length")
        size, start = int.from_bytes(raw[2 : 2 + count], "big"), 2 + count
    if len(raw) < start + size:
        raise ValueError("cut short")
    return raw[start : start + size], raw[start + size :]
