"""What one system asks of another, in the words of who asks.

The systems know only the Protocols of their own ``ports.py``; these classes fill them from the
system that has the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.deploy.ports import Image
from leasehold.gateway.certificates import Registered
from leasehold.images.ports import Credentials as RegistryCredentials
from leasehold.images.service import Images, Progress
from leasehold.manifest.ports import LeasePage, MarketDeployment, MarketGroup, MarketLease
from leasehold.market.accounts import PublicKey
from leasehold.market.client import LedgerClient
from leasehold.model.market import DeploymentId, LeaseId
from leasehold.model.resources import GroupSpec

LEASES_A_PAGE = 500


class ManifestMarket:
    """The ledger as manifest intake sees it."""

    def __init__(self, ledger: LedgerClient) -> None:
        self.ledger = ledger

    async def deployment(self, id: DeploymentId) -> MarketDeployment:
        found = await self.ledger.get("deployments", id)
        groups = [
            MarketGroup(
                gseq=int(item["id"].rpartition("/")[2]),
                spec=msgspec.convert(item["spec"], GroupSpec),
                state=item["state"],
            )
            async for item in self.ledger.list("groups", owner=id.owner, dseq=id.dseq)
        ]
        return MarketDeployment(id=id, hash=found["hash"], groups=groups, state=found["state"])

    async def leases(
        self, provider: str, deployment: DeploymentId | None = None, *, page: str = ""
    ) -> LeasePage:
        wanted: dict[str, Any] = {"provider": provider, "state": "live"}
        if deployment is not None:
            wanted |= {"owner": deployment.owner, "dseq": deployment.dseq}
        question = {"filter": wanted, "limit": LEASES_A_PAGE, "next": page}
        answer = await self.ledger.ask("/leases/list", msgspec.json.encode(question))
        return LeasePage(
            leases=[
                MarketLease(
                    id=LeaseId.parse(item["id"]),
                    state=item["state"],
                    denom=item["denom"],
                    amount=item["price"],
                    height=item["created"],
                )
                for item in answer["items"]
            ],
            next=answer["next"],
        )


class AccountKeys:
    """Public keys of accounts, for checking tokens."""

    def __init__(self, ledger: LedgerClient) -> None:
        self.ledger = ledger

    async def public_key(self, address: str) -> dict[str, str] | None:
        """The key as a JWK; None when the market has not seen the account sign anything."""
        try:
            found = await self.ledger.get("accounts", address)
        except LeaseholdError as error:
            if error.kind is Kind.NOT_FOUND:
                return None
            raise
        key = found.get("key")
        return msgspec.convert(key, PublicKey).jwk() if key else None


class MarketCertificates:
    """Client certificates on the ledger, as the gateway sees them."""

    def __init__(self, ledger: LedgerClient) -> None:
        self.ledger = ledger

    async def all(self) -> list[Registered]:
        """Every valid certificate."""
        return [_registered(item) async for item in self.ledger.list("certificates", state="valid")]

    async def find(self, owner: str, serial: str) -> Registered | None:
        """One certificate, valid or revoked; None when it was never registered."""
        try:
            return _registered(await self.ledger.get("certificates", f"{owner}/{serial}"))
        except LeaseholdError as error:
            if error.kind is Kind.NOT_FOUND:
                return None
            raise


def _registered(item: dict[str, Any]) -> Registered:
    owner, _, serial = item["id"].partition("/")
    return Registered(owner, serial, item["pem"], item["state"] == "valid")


@dataclass(frozen=True, slots=True)
class UnpackedImage:
    """An image as deploy sees it. ``bytes`` had to be fetched; 0 when all of it was here."""

    reference: str
    digest: str
    config: Mapping[str, Any]
    layers: Sequence[Path]
    bytes: int = 0


class DeployImages:
    """The image system as deploy sees it."""

    def __init__(self, images: Images) -> None:
        self.images = images

    async def ensure(
        self,
        reference: str,
        *,
        credentials: Any = None,
        progress: Callable[[int, int | None], None] | None = None,
        holder: str = "",
    ) -> Image:
        def told(step: Progress) -> None:
            if progress is not None:
                progress(step.bytes, step.total or None)

        login = None
        if credentials is not None and credentials.username:
            login = RegistryCredentials(credentials.username, credentials.password)
        image = await self.images.ensure(reference, credentials=login, progress=told, holder=holder)
        return UnpackedImage(
            image.reference, str(image.digest), image.config, image.layers, _fetched(image.sources)
        )

    async def release(self, holder: str, *, keep: Collection[str] = ()) -> None:
        self.images.keeping.release(holder, keep=keep)


def _fetched(sources: Mapping[str, int]) -> int:
    return sum(count for source, count in sources.items() if source != "cache")


class DeployMarket:
    """The ledger as deploy sees it."""

    def __init__(self, ledger: LedgerClient) -> None:
        self.ledger = ledger

    async def close_bid(self, lease: LeaseId, *, reason: int) -> None:
        await self.ledger.close_bid(lease, reason)
