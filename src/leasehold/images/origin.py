"""The registries images come from: the pull side of the distribution API.

``GET/HEAD <endpoint>/v2/<repository>/{manifests|blobs}/<reference>`` with bearer tokens or Basic.
No total time limit: a transfer may take as long as bytes keep coming (``stall_seconds`` between
two of them). Redirects are followed by hand, without the credentials once the host changes, and
only to addresses a registry may name (see ``guard``). Failures carry the class that decides what
the cluster does next: auth, not_found, rate_limited, transient.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import httpx

from leasehold.core.clock import Clock, SystemClock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.metrics import counter
from leasehold.core.service import Service
from leasehold.images import guard, oci
from leasehold.images.challenge import Authorizer
from leasehold.images.ports import ContentKind, Credentials, FailureClass, OriginError
from leasehold.images.settings import ImagesSettings, Registry
from leasehold.model.digest import Digest, is_digest
from leasehold.model.reference import DEFAULT_REGISTRY, is_host, is_repository

REDIRECTS = 5
"""Hops a registry may send us on."""

DOCKER_HUB = "https://registry-1.docker.io"

FAILURES = counter("p2p_origin_failure_total", "True faults of origins", ["class"])
REQUESTS = counter("leasehold_images_origin_requests_total", "Requests to origins", ["method"])
BYTES = counter("leasehold_images_origin_bytes_total", "Body bytes received from origins")

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")

log = get_logger(__name__)


class Content:
    """An answer on its way in; see ``ports.OriginContent``."""

    def __init__(self, response: httpx.Response, offset: int) -> None:
        headers = response.headers
        declared = headers.get("docker-content-digest", "")
        self.digest = Digest(declared) if is_digest(declared) else None
        self.media_type = headers.get("content-type", oci.OCTETS).partition(";")[0].strip()
        self.offset = offset
        self.size: int | None = None
        length = headers.get("content-length", "")
        if length.isdigit() and len(length) < 20:
            self.size = int(length) + offset
        self._response = response

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes (64 KiB pieces or less), never decoded."""
        try:
            async for piece in self._response.aiter_raw():
                BYTES.inc(len(piece))
                yield piece
        except (httpx.TransportError, httpx.StreamError) as error:
            raise _unreachable(str(self._response.url.host), error) from error

    async def body(self, limit: int) -> bytes:
        """The whole body, refused beyond ``limit`` bytes."""
        out = bytearray()
        async for piece in self.chunks():
            out += piece
            if len(out) > limit:
                raise LeaseholdError(
                    "manifest_too_large",
                    f"the registry sent a manifest of more than {limit} bytes",
                    kind=Kind.TOO_LARGE,
                    expected=f"<= {limit}",
                )
        return bytes(out)


class RegistryOrigin(Service):
    """The origin client of a node. ``settings.registries`` names the special ones."""

    def __init__(self, settings: ImagesSettings | None = None, clock: Clock | None = None) -> None:
        super().__init__("origin", clock=clock or SystemClock())
        self.settings = settings or ImagesSettings()
        self._registries: dict[str, Registry] = {}
        for registry in self.settings.registries:
            for name in (registry.name, *registry.aliases):
                self._registries[name] = registry
        self._credentials: dict[str, Credentials] = {}
        self._authorizer = Authorizer(self.clock)
        self._guarded: dict[frozenset[str], httpx.AsyncClient] = {}

    async def start(self) -> None:
        for registry in self.settings.registries:
            if registry.credentials_file:
                self._credentials[registry.name] = read_credentials(registry.credentials_file)
        self._ssl = ssl.create_default_context()
        enter = self.resources.enter_async_context
        # Proxies of the environment are for the world, never for a registry on this machine.
        self._world = await enter(self._client(trust_env=True))
        self._local = await enter(self._client(trust_env=False))

    def _client(
        self, *, trust_env: bool = False, transport: httpx.AsyncBaseTransport | None = None
    ) -> httpx.AsyncClient:
        s = self.settings
        return httpx.AsyncClient(
            timeout=httpx.Timeout(s.stall_seconds, connect=s.connect_seconds, pool=None),
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=20),
            headers={"User-Agent": "leasehold", "Accept-Encoding": "identity"},
            verify=self._ssl,
            trust_env=trust_env,
            transport=transport,
            follow_redirects=False,
        )

    def known(self, name: str) -> Registry | None:
        """The configured registry with this name or alias."""
        return self._registries.get(name)

    def endpoint(self, registry: str) -> str:
        """The base URL of ``registry``; refused when policy forbids it."""
        found = self._registries.get(registry)
        name = found.name if found else registry
        allowed = self.settings.allow_registries
        if not is_host(name):
            raise LeaseholdError(
                "registry_malformed", f"{name[:80]!r} is no registry host", kind=Kind.MALFORMED
            )
        if allowed and name not in allowed:
            raise LeaseholdError(
                "registry_not_allowed",
                f"{name} is not in images.allow_registries",
                kind=Kind.FORBIDDEN,
                expected=", ".join(allowed),
                got=name,
            )
        if found and found.endpoint:
            url = found.endpoint.rstrip("/")
            if url.startswith("http://") and not (found.insecure or _loopback(_host_of(url))):
                raise LeaseholdError(
                    "registry_insecure",
                    f"{url} is plain http; set insecure = true for {name} if that is meant",
                    kind=Kind.FORBIDDEN,
                )
            return url
        if name == DEFAULT_REGISTRY:
            return DOCKER_HUB
        if (found and found.insecure) or _loopback(_host_of(f"//{name}")):
            return f"http://{name}"
        return f"https://{name}"

    async def head(
        self,
        kind: ContentKind,
        registry: str,
        repository: str,
        target: str,
        credentials: Credentials | None = None,
    ) -> Content:
        async with self._exchange(
            "HEAD", kind, registry, repository, target, credentials, 0
        ) as content:
            return content

    @contextlib.asynccontextmanager
    async def fetch(
        self,
        kind: ContentKind,
        registry: str,
        repository: str,
        target: str,
        credentials: Credentials | None = None,
        offset: int = 0,
    ) -> AsyncIterator[Content]:
        async with self._exchange(
            "GET", kind, registry, repository, target, credentials, offset
        ) as content:
            yield content

    @contextlib.asynccontextmanager
    async def _exchange(
        self,
        method: str,
        kind: ContentKind,
        registry: str,
        repository: str,
        target: str,
        credentials: Credentials | None,
        offset: int,
    ) -> AsyncIterator[Content]:
        if not is_repository(repository):
            raise LeaseholdError(
                "repository_malformed",
                f"{repository[:80]!r} is no repository name",
                kind=Kind.MALFORMED,
                got=repository[:80],
            )
        base = self.endpoint(registry)
        found = self._registries.get(registry)
        who = credentials or self._credentials.get(found.name if found else registry)
        paths = [kind.path]
        if kind is not ContentKind.MANIFEST and is_digest(target):
            paths.append("manifests")  # registries serve a manifest's digest only there
        for path in paths:
            url = httpx.URL(f"{base}/v2/{repository}/{path}/{target}")
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            if path == "manifests":
                headers["Accept"] = oci.ACCEPT
            response = await self._authorized(method, url, registry, repository, who, headers)
            try:
                if response.status_code == 404 and path != paths[-1]:
                    continue
                yield Content(response, _accepted(response, registry, repository, target, offset))
                return
            finally:
                await response.aclose()

    async def _authorized(
        self,
        method: str,
        url: httpx.URL,
        registry: str,
        repository: str,
        who: Credentials | None,
        headers: dict[str, str],
    ) -> httpx.Response:
        """Send; on 401 answer the challenge and send once more."""
        scope = f"repository:{repository}:pull"
        sent = self._authorizer.header(registry, scope, who)
        response = await self._follow(method, url, headers, sent)
        if response.status_code != 401:
            return response
        challenge = response.headers.get("www-authenticate", "")
        await response.aclose()
        self._authorizer.forget(registry, scope, who)

        async def send(realm: httpx.URL, extra: dict[str, str]) -> httpx.Response:
            answer = await self._hop("GET", realm, extra, origin=url)
            try:
                await answer.aread()
            except httpx.TransportError as error:
                raise _unreachable(realm.host, error) from error
            finally:
                await answer.aclose()
            return answer

        answer = await self._authorizer.answer(registry, scope, challenge, who, send)
        if answer is None or answer == sent:
            FAILURES.labels("auth").inc()
            hint = "refused the credentials" if who else "wants credentials"
            raise OriginError(FailureClass.AUTH, f"{registry} {hint} for {repository}")
        return await self._follow(method, url, headers, answer)

    async def _follow(
        self, method: str, url: httpx.URL, headers: Mapping[str, str], authorization: str | None
    ) -> httpx.Response:
        """Send and follow redirects by hand; the credentials stay with the first host."""
        origin = url
        for _ in range(REDIRECTS + 1):
            extra = dict(headers)
            if authorization and _same_host(url, origin):
                extra["Authorization"] = authorization
            response = await self._hop(method, url, extra, origin=origin)
            if response.status_code not in (301, 302, 303, 307, 308):
                return response
            location = response.headers.get("location", "")
            await response.aclose()
            try:
                target = url.join(location)
            except httpx.InvalidURL:
                raise guard.RedirectRefused(location[:200], "which is no URL") from None
            if url.scheme == "https" and target.scheme == "http":
                raise guard.RedirectRefused(str(target)[:200], "from https down to http")
            url = target
        raise OriginError(FailureClass.TRANSIENT, f"{origin.host} redirects in a circle")

    async def _hop(
        self, method: str, url: httpx.URL, headers: dict[str, str], *, origin: httpx.URL
    ) -> httpx.Response:
        if url.scheme not in ("http", "https") or not url.host:
            raise guard.RedirectRefused(str(url)[:200], "which is neither http nor https")
        REQUESTS.labels(method).inc()
        try:
            client = await self._client_for(url, origin)
            request = client.build_request(method, url, headers=headers)
            return await client.send(request, stream=True)
        except (httpx.TransportError, OSError) as error:
            raise _unreachable(origin.netloc.decode(), error) from error

    async def _client_for(self, url: httpx.URL, origin: httpx.URL) -> httpx.AsyncClient:
        if _same_host(url, origin):
            return self._local if _loopback(url.host) else self._world
        allowed = {"public"}
        addresses = await guard.resolve(origin.host, origin.port or 443)
        allowed |= {guard.realm_of(a) for a in addresses} - {"forbidden"}
        key = frozenset(allowed)
        if key not in self._guarded:
            client = self._client(transport=guard.GuardedTransport(key, verify=self._ssl))
            self._guarded[key] = await self.resources.enter_async_context(client)
        return self._guarded[key]


def read_credentials(path: str) -> Credentials:
    """``user:password`` of a file; a missing or odd file is an error at once, not at a pull."""
    try:
        username, colon, password = Path(path).read_text().strip().partition(":")
    except OSError as error:
        raise LeaseholdError(
            "credentials_unreadable", f"cannot read {path}: {error.strerror}", got=path
        ) from None
    if not colon or not username:
        raise LeaseholdError(
            "credentials_malformed", f"{path} does not hold user:password", got=path
        )
    return Credentials(username, password)


def _accepted(
    response: httpx.Response, registry: str, repository: str, target: str, offset: int
) -> int:
    """The offset the body starts at, or the failure the status stands for."""
    status = response.status_code
    if status == 200:
        return 0
    if status == 206:
        match = _RANGE.fullmatch(response.headers.get("content-range", ""))
        if match is None or int(match[1]) != offset:
            raise OriginError(FailureClass.TRANSIENT, f"{registry} answered another range")
        return offset
    image = f"{registry}/{repository}{'@' if is_digest(target) else ':'}{target}"
    retry = response.headers.get("retry-after", "")
    after = float(retry) if retry.isdigit() and len(retry) < 7 else None
    if status in (401, 403):
        error = OriginError(FailureClass.AUTH, f"{registry} does not let us pull {image}")
    elif status == 404:
        error = OriginError(
            FailureClass.NOT_FOUND,
            f"{image} does not exist in its registry (or needs credentials); check the name",
            code="image_not_found",
        )
    elif status == 429:
        error = OriginError(
            FailureClass.RATE_LIMITED, f"{registry} is rate limiting us", retry_after=after
        )
    else:
        error = OriginError(
            FailureClass.TRANSIENT, f"{registry} answered {status} for {image}", retry_after=after
        )
    FAILURES.labels(error.failure.name.lower()).inc()
    raise error


def _unreachable(host: str, error: Exception) -> OriginError:
    FAILURES.labels("transient").inc()
    why = str(error) or type(error).__name__
    return OriginError(
        FailureClass.TRANSIENT,
        f"the registry {host} does not answer: {why}",
        code="registry_unreachable",
        retry_after=5.0,
    )


def _same_host(a: httpx.URL, b: httpx.URL) -> bool:
    return (a.scheme, a.host, a.port) == (b.scheme, b.host, b.port)


def _host_of(url: str) -> str:
    return httpx.URL(url).host


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
