"""Self-signed client certificates in the name of an account, for mTLS with a provider.

The key is a P-256 key of its own, as the originals make it: the account's key never goes into TLS.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from leasehold.core.errors import Kind, LeaseholdError


def make_certificate(owner: str, now: float, days: int = 365) -> tuple[str, str]:
    """``(certificate, private key)`` in PEM, CN is ``owner``, valid ``days`` from ``now``."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, owner)])
    begins = datetime.datetime.fromtimestamp(int(now), datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM).decode(), private.decode()


def save_certificate(folder: Path, certificate: str, private: str) -> None:
    """Write ``client.crt`` and ``client.key`` (mode 0600); refuses to replace a key."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        descriptor = os.open(folder / "client.key", flags, 0o600)
    except FileExistsError:
        raise LeaseholdError(
            "key_exists",
            f"{folder / 'client.key'} exists; choose another folder",
            kind=Kind.CONFLICT,
            got=folder,
        ) from None
    with os.fdopen(descriptor, "w") as file:
        file.write(private)
    (folder / "client.crt").write_text(certificate)
