"""A small OCI image built from the machine's static busybox: a web server that counts its starts.

The server keeps a line per start on its volume and shows it, so that whoever looks can tell a
workload that went on running from one that was started again.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from leasehold.core.errors import Kind, LeaseholdError

APPLETS = ("sh", "httpd", "date", "wc", "cat", "mkdir", "ls", "echo", "ps", "id", "sleep", "wget")

SERVE = """#!/bin/sh
# One line per start on the volume; the page says how many there were.
data=${DATA:-/data}
mkdir -p $data/www
echo "start $(date +%s)" >> $data/starts
echo "${GREETING:-hello}, start number $(wc -l < $data/starts)" > $data/www/index.html
echo "listening on 8080, start number $(wc -l < $data/starts)"
# As process 1 it must ask for SIGTERM to get it.
trap 'kill $server; exit 0' TERM
httpd -f -p 8080 -h $data/www &
server=$!
wait $server
"""


def build(folder: Path, *, greeting: str = "hello") -> str:
    """Write an OCI image layout into ``folder``; returns the manifest digest.

    LeaseholdError ``busybox_missing`` when the machine has no static busybox.
    """
    busybox = shutil.which("busybox")
    if busybox is None:
        raise LeaseholdError(
            "busybox_missing",
            "the demo's image is made from busybox: apt-get install busybox-static",
            kind=Kind.UNAVAILABLE,
        )
    layer = _layer(Path(busybox).read_bytes())
    packed = gzip.compress(layer, mtime=0)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Cmd": ["/bin/sh", "/serve.sh"],
            "Env": ["PATH=/bin", f"GREETING={greeting}"],
            "ExposedPorts": {"8080/tcp": {}},
        },
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        "history": [{"created_by": "leasehold demo"}],
    }
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(data: bytes, media_type: str) -> dict[str, Any]:
        digest = _digest(data)
        (blobs / digest.removeprefix("sha256:")).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    kind = "application/vnd.oci.image."
    manifest = put(
        json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": f"{kind}manifest.v1+json",
                "config": put(json.dumps(config).encode(), f"{kind}config.v1+json"),
                "layers": [put(packed, f"{kind}layer.v1.tar+gzip")],
            }
        ).encode(),
        f"{kind}manifest.v1+json",
    )
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    index = {"schemaVersion": 2, "manifests": [manifest]}
    (folder / "index.json").write_text(json.dumps(index))
    digest: str = manifest["digest"]
    return digest


def _layer(busybox: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("bin", "etc", "tmp", "data"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(entry)
        files = {
            "bin/busybox": busybox,
            "serve.sh": SERVE.encode(),
            "etc/passwd": b"root:x:0:0::/:\n",
        }
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
        for applet in APPLETS:
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return out.getvalue()


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
