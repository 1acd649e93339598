"""The mirror as clients use it: the contract, and real podman and skopeo."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from leasehold.core.service import running
from leasehold.images import build, client_setup
from leasehold.images.service import Images
from leasehold.images.settings import ImagesSettings, Registry


@contextlib.asynccontextmanager
async def mirror_of(
    folder: Path, *hosts: str, **settings: Any
) -> AsyncIterator[tuple[str, Images]]:
    registries = tuple(Registry(name=h, aliases=(f"alias-of-{h[-5:]}",)) for h in hosts)
    node = Images(
        folder,
        settings=ImagesSettings(
            registries=registries, mirror_port=0, origin_attempts=1, **settings
        ),
        mirror=True,
    )
    async with running(node):
        assert node.mirror_server is not None
        yield node.mirror_server.url, node


async def test_the_mirror_contract(registry: Any, tmp_path: Path) -> None:
    """Sections 3.1 and 8 of the original, and Range, which it lacked."""
    payload = os.urandom(1_500_000)
    built = build.busybox({"data": payload})
    await build.push(built, registry.host, "mirror/contract", "1")
    blob = built.layers[1]
    logs = registry.logs
    async with (
        mirror_of(tmp_path, registry.host) as (url, node),
        httpx.AsyncClient(base_url=f"{url}/v2") as client,
    ):
        assert (await client.get("/")).status_code == 200
        base = "/mirror/contract"
        assert (await client.post(f"{base}/blobs/uploads/")).status_code == 405
        assert (await client.get("/nonsense")).status_code == 404
        tag = await client.get(f"{base}/manifests/1")
        assert tag.status_code == 503 and tag.content == b""
        assert (await client.get(f"{base}/blobs/sha256:short")).status_code == 400
        path = f"{base}/blobs/{blob.digest}"
        assert (await client.get(path, params={"ns": "other.example"})).status_code == 404
        # HEAD of what is not here asks the registry once and fetches nothing.
        before = logs.read_text().count('"GET /v2/mirror/contract')
        head = await client.head(path)
        assert head.headers["content-length"] == str(len(blob.blob))
        assert not await node.store.has(blob.digest)
        assert logs.read_text().count('"GET /v2/mirror/contract') == before
        for params in ({}, {"ns": registry.host}, {"ns": f"alias-of-{registry.host[-5:]}"}):
            got = await client.get(path, params=params)
            assert got.status_code == 200 and got.content == blob.blob
        assert got.headers["docker-content-digest"] == blob.digest
        assert got.headers["content-type"] == "application/octet-stream"
        assert logs.read_text().count('"GET /v2/mirror/contract/blobs') == 1
        part = await client.get(path, headers={"Range": "bytes=100-199"})
        assert part.status_code == 206 and part.content == blob.blob[100:200]
        past = await client.get(path, headers={"Range": f"bytes={len(blob.blob)}-"})
        assert past.status_code == 416
        # A manifest by either path has its type.
        for word in ("manifests", "blobs"):
            found = await client.get(f"{base}/{word}/{built.digest}")
            assert found.headers["content-type"] == "application/vnd.oci.image.manifest.v1+json"
            assert found.content == built.manifest
        missing = await client.get(f"{base}/blobs/{build.layer({'x': b'y'}).digest}")
        assert missing.status_code == 404
        node.mirror.ready = False
        gate = await client.get(path)
        assert gate.status_code == 503 and gate.headers["retry-after"] == "5"
        assert (await client.get("/")).status_code == 503


async def test_two_registries_need_a_name(registry: Any, tmp_path: Path) -> None:
    built = build.busybox()
    await build.push(built, registry.host, "mirror/two", "1")
    async with (
        mirror_of(tmp_path, registry.host, "other.example") as (url, _),
        httpx.AsyncClient(base_url=f"{url}/v2/mirror/two") as client,
    ):
        path = f"/manifests/{built.digest}"
        assert (await client.get(path)).status_code == 404
        assert (await client.get(path, params={"ns": registry.host})).status_code == 200


async def test_known_tags_outlive_their_registry_when_allowed(
    own_registry: Any, tmp_path: Path
) -> None:
    process, registry = own_registry
    built = build.busybox()
    await build.push(built, registry.host, "t", "1")
    async with (
        mirror_of(tmp_path, registry.host, mirror_known_tag_seconds=600) as (url, _),
        httpx.AsyncClient(base_url=f"{url}/v2/t/manifests") as client,
    ):
        assert (await client.get("/1")).content == built.manifest
        process.kill()
        process.wait()
        assert (await client.get("/1")).content == built.manifest
        assert (await client.get("/2")).status_code == 503


async def run(*command: str, **env: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **env},
    )
    try:
        async with asyncio.timeout(60):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    text = output.decode()
    assert process.returncode == 0, text
    return text


async def test_skopeo_copies_through_the_mirror(registry: Any, tmp_path: Path) -> None:
    built = build.busybox({"x": os.urandom(100_000)})
    await build.push(built, registry.host, "mirror/skopeo", "1")
    async with mirror_of(tmp_path / "node", registry.host) as (url, node):
        host = url.removeprefix("http://")
        await run(
            "skopeo", "copy", "--src-tls-verify=false",
            f"docker://{host}/mirror/skopeo@{built.digest}", f"oci:{tmp_path / 'out'}:x",
        )  # fmt: skip
        assert await node.store.has(built.layers[1].digest)
        for layer in built.layers:
            copied = tmp_path / "out/blobs/sha256" / layer.digest.hex
            assert copied.read_bytes() == layer.blob


async def test_podman_pulls_through_the_mirror(registry: Any, tmp_path: Path) -> None:
    """With the configuration ``leasehold node setup podman`` writes."""
    built = build.busybox({"y": b"1"})
    await build.push(built, registry.host, "mirror/podman", "1")
    async with mirror_of(tmp_path / "node", registry.host) as (url, node):
        conf = tmp_path / "registries.conf.d"
        written = client_setup.podman([registry.host], url, folder=conf)
        assert written == [conf / client_setup.PODMAN_FILE]
        with tempfile.TemporaryDirectory(prefix="lh") as short:  # podman wants a short path
            podman = ("podman", "--root", f"{short}/root", "--runroot", f"{short}/run",
                      "--storage-driver", "vfs")  # fmt: skip
            image = f"{registry.host}/mirror/podman@{built.digest}"
            await run(
                *podman, "pull", "--tls-verify=false", "-q", image,
                CONTAINERS_REGISTRIES_CONF=str(written[0]),
            )  # fmt: skip
            listed = await run(*podman, "images", "--digests", "--format", "json")
        assert built.digest in json.dumps(json.loads(listed))
        assert await node.store.has(built.layers[1].digest), "podman went past the mirror"
        assert client_setup.remove_podman(folder=conf) == written
        assert not (conf / client_setup.PODMAN_FILE).exists()


async def test_a_private_image_is_private_on_the_mirror_too(
    private_registry: Any, tmp_path: Path
) -> None:
    """With mirror_shared_content off, bytes that are here are still refused without a right."""
    registry, good = private_registry
    built = build.busybox()
    await build.push(built, registry.host, "secret", "1", credentials=good)
    right = httpx.BasicAuth(good.username, good.password)
    async with (
        mirror_of(tmp_path, registry.host, mirror_shared_content=False) as (url, _),
        httpx.AsyncClient(base_url=f"{url}/v2/secret/manifests") as client,
    ):
        assert (await client.get(f"/{built.digest}")).status_code == 401
        assert (await client.get(f"/{built.digest}", auth=right)).status_code == 200
        assert (await client.get(f"/{built.digest}")).status_code == 401, "held, and still refused"
        wrong = httpx.BasicAuth(good.username, "wrong")
        assert (await client.get(f"/{built.digest}", auth=wrong)).status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1"])
def test_the_mirror_stays_on_loopback(host: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no authentication"):
        Images(tmp_path, settings=ImagesSettings(mirror_host=host), mirror=True)
