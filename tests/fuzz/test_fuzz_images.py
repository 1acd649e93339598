"""Layers, manifests, HTTP and certificates of strangers: refused or taken, never a crash."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import msgspec
import pytest

from leasehold.images import build

SECONDS = 6
MEGABYTES = 1024


def seeds(target: str) -> list[bytes]:
    built = build.image([build.layer({"a/": None, "a/b": b"1", "l": "a", "a/.wh.x": b""}, "")])
    if target == "layer":
        hard = io.BytesIO()
        with tarfile.open(fileobj=hard, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for name, link in (("n" * 150, ""), ("h", "n" * 150)):
                info = tarfile.TarInfo(name)
                if link:
                    info.type, info.linkname = tarfile.LNKTYPE, link
                tar.addfile(info)
        return [built.layers[0].blob, hard.getvalue()]
    if target == "manifest":
        index = {"schemaVersion": 2, "manifests": [msgspec.json.decode(built.manifest)["config"]]}
        return [built.manifest, built.config, msgspec.json.encode(index)]
    if target == "http":
        return [b"bytes=0-5", b'Bearer realm="https://a/t",service="s"', b"/v2/a/blobs/sha256:0"]
    return [b"\x30\x82\x01\x00" + bytes(256)]


@pytest.mark.fuzz
@pytest.mark.parametrize("target", ["layer", "manifest", "http", "certificate"])
def test_fuzz(target: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for index, seed in enumerate(seeds(target)):
        (corpus / str(index)).write_bytes(seed)
    script = Path(__file__).with_name("atheris_images.py")
    done = subprocess.run(
        [sys.executable, str(script), target, f"-max_total_time={SECONDS}", "-max_len=8192",
         f"-rss_limit_mb={MEGABYTES}", "-timeout=5", str(corpus)],
        capture_output=True, text=True, cwd=tmp_path, timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
