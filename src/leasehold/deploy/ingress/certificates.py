"""Certificates for the host names that lead to workloads.

They come from two places. *Files*: the operator keeps ``NAME.pem`` (chain and key in one) or
``NAME.crt`` with ``NAME.key`` in a folder that is looked at every minute; a file replaced there is
served from then on. *An authority* that speaks ACME: names that no file covers are asked for, as
soon as they lead somewhere, and again when a third of their time is left. Only names that passed
the host name service ever lead somewhere, so nothing else is asked for.

What was issued is kept in ``folder`` until it ends, also when its name leads nowhere for a while:
authorities count. A name that cannot be had (it does not lead here yet, say) is asked for again
after growing pauses, up to half a day; what the authority said is part of the lease's status.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from leasehold.core import metrics
from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.retry import Backoff
from leasehold.core.service import Service
from leasehold.deploy.ingress.acme import Acme
from leasehold.deploy.ingress.haproxy import Ingress
from leasehold.deploy.settings import DeploySettings

LOOK_SECONDS = 60.0
"""Between looks at the operator's files and at what is due."""

RENEW_SHARE = 1 / 3
"""A certificate is renewed when this part of its time is left, as authorities recommend."""

ORDER_SECONDS = 180.0
"""An order may take so long in all."""

AT_ONCE = 4
"""Orders at the same time."""

FIRST_AGAIN, LAST_AGAIN = 60.0, 12 * 3600.0
"""Seconds before a refused name is asked for again."""

PRIVATE = ("localhost", "local", "internal", "invalid", "test")
"""Top-level names that no public authority can check."""

ISSUED = metrics.counter("leasehold_certificates_total", "orders of certificates", ["result"])
UNTIL = metrics.gauge(
    "leasehold_certificate_expiry_seconds", "until the first certificate in use ends", []
)

log = get_logger(__name__)


@dataclass(frozen=True)
class Certificate:
    """``text`` is chain and key, PEM; ``begins`` and ``ends`` are seconds UTC."""

    names: frozenset[str]
    begins: float
    ends: float
    text: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Certificate:
        """Raises ValueError for what is not a chain with its own key."""
        leaf = x509.load_pem_x509_certificates(text.encode())[0]
        key = serialization.load_pem_private_key(text.encode(), None)
        if key.public_key() != leaf.public_key():
            raise ValueError("the key does not belong to the certificate")
        try:
            extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except x509.ExtensionNotFound:
            raise ValueError("the certificate names no hosts") from None
        names = frozenset(n.lower() for n in extension.value.get_values_for_type(x509.DNSName))
        return cls(
            names,
            leaf.not_valid_before_utc.timestamp(),
            leaf.not_valid_after_utc.timestamp(),
            text,
        )

    def covers(self, host: str) -> bool:
        """Also by a wildcard, which stands for one label."""
        return host in self.names or f"*.{host.partition('.')[2]}" in self.names

    def due(self, now: float) -> bool:
        return now >= self.ends - (self.ends - self.begins) * RENEW_SHARE


@dataclass
class Trouble:
    """Why a name has no certificate, and when (seconds UTC) it is asked for again."""

    error: str
    failures: int
    again: float


class Certificates(Service):
    """Keeps ``ingress`` supplied. ``folder`` is private; ``files`` the operator's (None: none);
    ``authority`` None: files only."""

    stop_deadline = 2.0

    def __init__(
        self,
        ingress: Ingress,
        folder: Path,
        *,
        files: Path | None = None,
        authority: Acme | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__("certificates", clock=clock)
        self.ingress = ingress
        self.folder = folder
        self.files = files
        self.authority = authority
        self.backoff = Backoff(first=FIRST_AGAIN, cap=LAST_AGAIN, rng=rng or random.Random())
        self.given: dict[str, Certificate] = {}
        self.issued: dict[str, Certificate] = {}
        self.troubles: dict[str, Trouble] = {}
        self._asked: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(AT_ONCE)
        self._wake = asyncio.Event()
        self._unusable: set[str] = set()

    async def start(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted(self.folder.glob("*.pem")):
            with contextlib.suppress(ValueError, OSError):
                self.issued[path.stem] = Certificate.parse(path.read_text())
        self.ingress.on_hosts.append(self._wake.set)
        self.resources.callback(self.ingress.on_hosts.remove, self._wake.set)
        if self.authority is not None:
            self.resources.push_async_callback(self.authority.http.aclose)
        try:
            await self.look()
        except (LeaseholdError, OSError) as error:
            log.warning("certificates.not_served", error=str(error))
        self.spawn(self._keep_looking(), name="look")

    async def _keep_looking(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with self.clock.timeout(self._pause()):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self.look()
            except (LeaseholdError, OSError) as error:
                log.warning("certificates.not_served", error=str(error))

    def _pause(self) -> float:
        now = self.clock.now()
        waiting = [t.again - now for h, t in self.troubles.items() if h in self.ingress.hosts]
        return min([LOOK_SECONDS, *(max(0.05, wait) for wait in waiting)])

    async def look(self) -> None:
        """Read files, ask for what is missing or due, and let the proxy have what there is."""
        if self.files is not None:
            self.given = await asyncio.to_thread(self._read, self.files)
        now = self.clock.now()
        for host in [h for h, c in self.issued.items() if c.ends <= now]:
            del self.issued[host]
            (self.folder / f"{host}.pem").unlink(missing_ok=True)
        hosts = self.ingress.hosts
        if self.authority is not None:
            for host in sorted(hosts):
                self._ask_for(host, now)
        serve = {f"file-{name}": c.text for name, c in self.given.items()}
        for host, certificate in self.issued.items():
            if host in hosts and not self._given(host):
                serve[f"acme-{host}"] = certificate.text
        secure = [host for host in hosts if self.of(host) is not None]
        await self.ingress.certify(serve, secure)
        ends = [c.ends for host in secure if (c := self.of(host)) is not None]
        UNTIL.set(min(ends, default=now) - now)

    def of(self, host: str) -> Certificate | None:
        """What is served for ``host``."""
        return self._given(host) or self.issued.get(host)

    def status(self, hosts: Iterable[str]) -> dict[str, Any]:
        """By host: where its certificate is from and how long it lasts, or why there is none."""
        found: dict[str, Any] = {}
        for host in hosts:
            certificate, trouble = self.of(host), self.troubles.get(host)
            said: dict[str, Any] = {"state": "none"}
            if certificate is not None:
                source = "file" if self._given(host) else "acme"
                said = {"state": "valid", "source": source, "until": certificate.ends}
            elif host in self._asked:
                said = {"state": "asked for"}
            if trouble is not None:
                said |= {"error": trouble.error, "again": trouble.again}
            found[host] = said
        return found

    def _given(self, host: str) -> Certificate | None:
        return next((c for c in self.given.values() if c.covers(host)), None)

    # -- files ------------------------------------------------------------------------------------

    def _read(self, folder: Path) -> dict[str, Certificate]:
        found: dict[str, Certificate] = {}
        unusable: set[str] = set()
        for path in sorted([*folder.glob("*.pem"), *folder.glob("*.crt")]):
            try:
                text = path.read_text()
                if path.suffix == ".crt":
                    text += "\n" + path.with_suffix(".key").read_text()
                found[path.stem] = Certificate.parse(text)
            except (ValueError, OSError) as error:
                unusable.add(f"{path.name}: {error}")
                # Half written, perhaps: what it held before is served until it is whole.
                if path.stem in self.given:
                    found[path.stem] = self.given[path.stem]
        for text in unusable - self._unusable:
            log.warning("certificates.unusable_file", file=text)
        self._unusable = unusable
        return found

    # -- the authority ----------------------------------------------------------------------------

    def _ask_for(self, host: str, now: float) -> None:
        if host in self._asked or self._given(host) is not None or not public(host):
            return
        held, trouble = self.issued.get(host), self.troubles.get(host)
        if held is not None and not held.due(now):
            return
        if trouble is not None and now < trouble.again:
            return
        self._asked[host] = self.spawn(self._order(host), name=f"certificate {host}")

    async def _order(self, host: str) -> None:
        assert self.authority is not None
        try:
            async with self._room, self.clock.timeout(ORDER_SECONDS):
                key = ec.generate_private_key(ec.SECP256R1())
                chain = await self.authority.issue([host], key, self.ingress.prove)
                text = chain.strip() + "\n" + _pem(key)
                self.issued[host] = Certificate.parse(text)
                keep(self.folder / f"{host}.pem", text)
            self.troubles.pop(host, None)
            ISSUED.labels("issued").inc()
            log.info("certificate.issued", host=host, until=self.issued[host].ends)
        except (LeaseholdError, TimeoutError, ValueError, KeyError, TypeError) as error:
            # Also an answer that is no ACME: one name's trouble is not the others'.
            self._failed(host, error)
        finally:
            del self._asked[host]
            self._wake.set()

    def _failed(self, host: str, error: Exception) -> None:
        before = self.troubles.get(host)
        failures = before.failures + 1 if before else 1
        wait = max(FIRST_AGAIN / 2, self.backoff.delay(failures))
        told = str(error) or f"no answer within {ORDER_SECONDS:g} s"
        if isinstance(error, LeaseholdError):
            told, wait = error.message, max(wait, error.retry_after or 0.0)
        self.troubles[host] = Trouble(told, failures, self.clock.now() + wait)
        ISSUED.labels("refused").inc()
        log.warning("certificate.refused", host=host, error=told, again_in=round(wait))


def public(host: str) -> bool:
    """Whether a certificate authority can know this name."""
    top = host.rpartition(".")
    return bool(top[0]) and top[2] not in PRIVATE and not top[2].isdigit() and "_" not in host


def keep(path: Path, text: str) -> None:
    """Write a secret in one step, durably."""
    temporary = path.with_name(f".{path.name}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def account_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key that stands for this provider at the authority, made when there is none."""
    with contextlib.suppress(FileNotFoundError):
        found = serialization.load_pem_private_key(path.read_bytes(), None)
        if not isinstance(found, ec.EllipticCurvePrivateKey):
            raise LeaseholdError("bad_account_key", f"{path} holds no elliptic curve key")
        return found
    key = ec.generate_private_key(ec.SECP256R1())
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    keep(path, _pem(key))
    return key


def binding(path: str) -> tuple[str, bytes] | None:
    """The external account of a file that holds its key id and its HMAC key (base64url)."""
    if not path:
        return None
    try:
        kid, secret = Path(path).read_text().split()
        return kid, base64.urlsafe_b64decode(secret + "=" * (-len(secret) % 4))
    except (OSError, ValueError) as error:
        raise LeaseholdError(
            "bad_external_account",
            f"{path} is not a key id and an HMAC key: {error}",
            kind=Kind.INVALID,
            path="deploy.acme_account_file",
        ) from None


def from_settings(
    ingress: Ingress,
    folder: Path,
    settings: DeploySettings,
    *,
    clock: Clock | None = None,
    rng: random.Random | None = None,
) -> Certificates | None:
    """What the settings ask for; None: no HTTPS."""
    if not settings.https:
        return None
    authority = None
    if settings.acme_directory:
        if not settings.acme_agree_to_terms:
            raise LeaseholdError(
                "terms_not_agreed",
                "asking a certificate authority for certificates means agreeing to its terms of "
                "service: read them, then set deploy.acme_agree_to_terms",
                kind=Kind.INVALID,
                path="deploy.acme_agree_to_terms",
                expected=True,
                got=False,
            )
        authority = Acme(
            settings.acme_directory,
            account_key(folder / "account.key"),
            client(settings.acme_ca_file),
            ingress.clock,
            contact=settings.acme_contact,
            external=binding(settings.acme_account_file),
        )
    files = Path(settings.ingress_certificates) if settings.ingress_certificates else None
    return Certificates(ingress, folder, files=files, authority=authority, clock=clock, rng=rng)


def client(ca_file: str) -> httpx.AsyncClient:
    """``ca_file``: whom to trust for the authority's own HTTPS; empty: the system's list."""
    context = ssl.create_default_context(cafile=ca_file or None)
    return httpx.AsyncClient(verify=context, timeout=30.0, headers={"user-agent": "leasehold"})


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
