"""Tenants' client certificates, as far as the ledger looks at them."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import NameOID

from leasehold.core.errors import LeaseholdError


def read_certificate(pem: str, owner: str) -> str:
    """The serial in decimal text of a self-signed certificate whose CN is ``owner``.

    LeaseholdError ``bad_certificate`` otherwise. Dates are not looked at: they are the matter of
    whoever accepts a connection, and time has no place in the rules of the ledger.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        names = [n.value for n in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        certificate.verify_directly_issued_by(certificate)
        serial = str(certificate.serial_number)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise _bad(f"it cannot be read or is not self-signed: {error}"[:300]) from None
    if names != [owner]:
        raise _bad(f"its common name is {names}, not {owner}")
    return serial


def _bad(why: str) -> LeaseholdError:
    return LeaseholdError("bad_certificate", f"this certificate is refused: {why}", path="pem")
