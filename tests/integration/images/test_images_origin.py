"""The origin client against registries that want tokens, redirect, fail, and lie."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from leasehold.core.errors import LeaseholdError
from leasehold.core.service import running
from leasehold.core.web import HttpServer
from leasehold.images import build
from leasehold.images.origin import RegistryOrigin
from leasehold.images.ports import ContentKind, Credentials, FailureClass, OriginError
from leasehold.images.service import Images
from leasehold.images.settings import ImagesSettings, Registry
from leasehold.images.transfer import lifespan
from leasehold.model.digest import Digest

BLOB = b"content " * 1000
DIGEST = Digest.of(BLOB)

Answer = tuple[int, dict[str, str], bytes]


class FakeRegistry:
    """Answers as told; remembers every request as (method, path, query, authorization)."""

    def __init__(self, answer: Callable[[FakeRegistry, dict[str, Any]], Answer]) -> None:
        self.answer = answer
        self.seen: list[dict[str, Any]] = []
        self.url = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        request = {
            "method": scope["method"],
            "path": scope["path"],
            "query": scope["query_string"].decode(),
            "authorization": headers.get("authorization"),
            "range": headers.get("range"),
        }
        self.seen.append(request)
        status, extra, body = self.answer(self, request)
        pairs = [(k.encode(), v.encode()) for k, v in extra.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": body})

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")


@contextlib.asynccontextmanager
async def registry_of(
    answer: Callable[[FakeRegistry, dict[str, Any]], Answer], **settings: Any
) -> AsyncIterator[tuple[FakeRegistry, RegistryOrigin]]:
    fake = FakeRegistry(answer)
    async with running(HttpServer(fake)) as server:
        fake.url = server.url
        origin = RegistryOrigin(ImagesSettings(**settings))
        async with running(origin):
            yield fake, origin


async def pull(
    origin: RegistryOrigin, fake: FakeRegistry, who: Credentials | None = None, offset: int = 0
) -> bytes:
    async with origin.fetch(
        ContentKind.BLOB, fake.host, "team/app", DIGEST, who, offset
    ) as content:
        return b"".join([piece async for piece in content.chunks()])


def token_service(registry: FakeRegistry, request: dict[str, Any]) -> Answer:
    """A registry with bearer tokens; ``tenant`` with ``pw`` and nobody else gets one."""
    if request["path"] == "/token":
        good = "Basic " + base64.b64encode(b"tenant:pw").decode()
        if request["authorization"] != good:
            return 401, {}, b""
        return 200, {}, msgspec.json.encode({"token": "t0k3n", "expires_in": 300})
    if request["authorization"] != "Bearer t0k3n":
        realm = (
            f'Bearer realm="{registry.url}/token",service="reg",scope="repository:team/app:pull"'
        )
        return 401, {"www-authenticate": realm}, b""
    return 200, {"content-length": str(len(BLOB))}, BLOB


async def test_bearer_tokens_are_asked_for_once_and_kept_to_who_asked() -> None:
    async with registry_of(token_service) as (fake, origin):
        who = Credentials("tenant", "pw")
        assert await pull(origin, fake, who) == BLOB
        assert await pull(origin, fake, who) == BLOB
        asked = [r for r in fake.seen if r["path"] == "/token"]
        assert len(asked) == 1 and "service=reg" in asked[0]["query"]
        with pytest.raises(OriginError) as caught:
            await pull(origin, fake, Credentials("tenant", "stolen"))
        assert caught.value.failure is FailureClass.AUTH
        with pytest.raises(OriginError):
            await pull(origin, fake)


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        (401, FailureClass.AUTH),
        (403, FailureClass.AUTH),
        (404, FailureClass.NOT_FOUND),
        (429, FailureClass.RATE_LIMITED),
        (500, FailureClass.TRANSIENT),
        (418, FailureClass.TRANSIENT),
    ],
)
async def test_failures_have_their_class(status: int, failure: FailureClass) -> None:
    async with registry_of(lambda *_: (status, {"retry-after": "7"}, b"")) as (fake, origin):
        with pytest.raises(OriginError) as caught:
            await pull(origin, fake)
        assert caught.value.failure is failure


async def test_a_manifest_asked_for_as_a_blob_is_found() -> None:
    def answer(_: FakeRegistry, request: dict[str, Any]) -> Answer:
        return (200, {}, BLOB) if "/manifests/" in request["path"] else (404, {}, b"")

    async with registry_of(answer) as (fake, origin):
        assert await pull(origin, fake) == BLOB


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[fe80::1]/x",
        "http://[::ffff:169.254.169.254]/x",
        "http://10.0.0.1/x",
        "http://0.0.0.0:1/x",
        "file:///etc/passwd",
        "gopher://example.org/",
        "//169.254.169.254/x",
    ],
)
@pytest.mark.parametrize("by", ["redirect", "token realm"])
async def test_a_registry_cannot_send_us_inwards(target: str, by: str) -> None:
    def answer(_: FakeRegistry, request: dict[str, Any]) -> Answer:
        if by == "redirect":
            return 307, {"location": target}, b""
        return 401, {"www-authenticate": f'Bearer realm="{target}"'}, b""

    async with registry_of(answer, connect_seconds=1) as (fake, origin):
        with pytest.raises(LeaseholdError) as caught:
            await pull(origin, fake, Credentials("tenant", "pw"))
        assert caught.value.code == "redirect_refused"
        assert len(fake.seen) == 1


async def test_credentials_stay_with_their_host() -> None:
    other_seen: list[str | None] = []

    def other(_: FakeRegistry, request: dict[str, Any]) -> Answer:
        other_seen.append(request["authorization"])
        return 200, {}, BLOB

    async with registry_of(other) as (store, _):
        where = store.url + "/blob?signature=1"

        def answer(_: FakeRegistry, request: dict[str, Any]) -> Answer:
            if not request["authorization"]:
                return 401, {"www-authenticate": "Basic realm=x"}, b""
            return 302, {"location": where}, b""

        async with registry_of(answer) as (fake, origin):
            assert await pull(origin, fake, Credentials("tenant", "pw")) == BLOB
    assert other_seen == [None]


async def test_a_circle_of_redirects_ends() -> None:
    async with registry_of(lambda *_: (302, {"location": "/again"}, b"")) as (fake, origin):
        with pytest.raises(OriginError, match="circle"):
            await pull(origin, fake)
        assert len(fake.seen) < 10


async def test_ranges_go_on_where_they_were() -> None:
    def answer(_: FakeRegistry, request: dict[str, Any]) -> Answer:
        start = int(request["range"][6:-1])
        span = f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}"
        return 206, {"content-range": span}, BLOB[start:]

    async with registry_of(answer) as (fake, origin):
        assert await pull(origin, fake, offset=100) == BLOB[100:]


async def test_plain_http_and_other_registries_need_permission() -> None:
    plain = Registry(name="r.example", endpoint="http://r.example:80")
    async with running(RegistryOrigin(ImagesSettings(registries=(plain,)))) as origin:
        with pytest.raises(LeaseholdError, match="plain http"):
            origin.endpoint("r.example")
    only = ImagesSettings(allow_registries=("a.example",))
    async with running(RegistryOrigin(only)) as origin:
        assert origin.endpoint("a.example") == "https://a.example"
        with pytest.raises(LeaseholdError, match="allow_registries"):
            origin.endpoint("docker.io")


async def test_private_images_need_the_callers_own_credentials(
    private_registry: Any, tmp_path: Any
) -> None:
    """The bytes being here prove nothing; revoked credentials end within the bound."""
    registry, good = private_registry
    built = build.busybox()
    name = await build.push(built, registry.host, "team/secret", "1", credentials=good)
    pinned = f"{registry.host}/team/secret@{built.digest}"
    settings = ImagesSettings(origin_attempts=1, access_recheck_seconds=0.2)
    async with running(Images(tmp_path / "images", settings=settings)) as images:
        assert (await images.ensure(name, credentials=good)).layers
        for reference in (name, pinned):
            for who in (None, Credentials("tenant", "guess")):
                with pytest.raises(LeaseholdError) as caught:
                    await images.ensure(reference, credentials=who)
                assert caught.value.code in ("origin_auth", "image_access_denied")
        assert (await images.ensure(pinned, credentials=good)).layers
        await asyncio.to_thread((tmp_path / "htpasswd").write_text, "nobody:x\n")
        await asyncio.sleep(0.25)  # the bound itself
        with pytest.raises(LeaseholdError) as caught:
            await images.ensure(pinned, credentials=good)
        assert caught.value.code == "image_access_denied"
