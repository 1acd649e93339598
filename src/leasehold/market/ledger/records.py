"""Records of the market: certificates, providers, and what auditors vouch for."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from leasehold.market.ledger import messages as m
from leasehold.market.ledger.certificates import read_certificate
from leasehold.market.ledger.escrow import Ledger
from leasehold.market.ledger.state import Audit, Certificate, Provider
from leasehold.market.ledger.words import conflict, missing, ordered


class Records(Ledger):
    """Handlers; see ``machine``."""

    def _create_certificate(self, signer: str, message: m.CreateCertificate) -> dict[str, Any]:
        serial = read_certificate(message.pem, signer)
        id = f"{signer}/{serial}"
        if id in self.state.certificates:
            raise conflict("certificate_exists", f"certificate {id} was registered before", id)
        self.state.put("certificates", Certificate(id, "valid", message.pem))
        self.emit("akash.cert.v1.EventCertificateCreated", owner=signer, serial=serial)
        return {"serial": serial}

    def _revoke_certificate(self, signer: str, message: m.RevokeCertificate) -> None:
        id = f"{signer}/{message.serial}"
        certificate = self.state.certificates.get(id)
        if certificate is None:
            raise missing("certificate", id)
        if certificate.state != "valid":
            raise conflict("certificate_revoked", f"certificate {id} is revoked", "revoked")
        self.state.put("certificates", replace(certificate, state="revoked"))
        self.emit("akash.cert.v1.EventCertificateRevoked", owner=signer, serial=message.serial)

    def _set_provider(self, signer: str, message: m.SetProvider) -> None:
        provider = Provider(
            signer,
            message.host_uri,
            ordered(message.attributes),
            message.email,
            message.website,
        )
        known = self.state.providers.get(signer)
        if known == provider:
            return
        self.state.put("providers", provider)
        verb = "Updated" if known else "Created"
        self.emit(f"akash.provider.v1.EventProvider{verb}", owner=signer)

    def _sign_attributes(self, signer: str, message: m.SignAttributes) -> None:
        if message.provider not in self.state.providers:
            raise missing("provider", message.provider)
        id = f"{message.provider}/{signer}"
        known = self.state.audits.get(id)
        merged = {a.key: a for a in (known.attributes if known else [])}
        merged.update((a.key, a) for a in ordered(message.attributes))
        self.state.put("audits", Audit(id, sorted(merged.values())))
        self.emit(
            "akash.audit.v1.EventTrustedAuditorCreated", owner=message.provider, auditor=signer
        )

    def _delete_audit(self, signer: str, message: m.DeleteAudit) -> None:
        id = f"{message.provider}/{signer}"
        known = self.state.audits.get(id)
        if known is None or not known.attributes:
            raise missing("audit", id)
        left = [a for a in known.attributes if message.keys and a.key not in message.keys]
        self.state.put("audits", Audit(id, left))
        self.emit(
            "akash.audit.v1.EventTrustedAuditorDeleted", owner=message.provider, auditor=signer
        )
