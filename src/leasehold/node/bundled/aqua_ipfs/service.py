"""The service ``aqua-ipfs``: files in IPFS through the HTTP API of a local daemon.

Speaks kubo's RPC API (``/api/v0``, POST only). Contents travel as base64 and are limited by what a
call may carry. The two addresses are set at installation and can be changed by the host.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import os
import subprocess
import urllib.parse
import uuid
from typing import Any

from leasehold.node.sdk import Refused, Service

TIMEOUT = 30.0
"""Seconds one request to the daemon may take."""

service = Service()
PATH = os.path.join(service.data, "addresses.json")
MAX_CONTENT = service.max_line * 3 // 4 - 4096
"""Bytes of a file that still fits into a reply as base64."""


def _load() -> dict[str, str]:
    try:
        with open(PATH) as file:
            loaded: dict[str, str] = json.load(file)
            return loaded
    except FileNotFoundError:
        return {}


addresses = _load()


def _store(name: str, multiaddr: str) -> None:
    if service.context.caller not in (service.context.owner, service.context.host):
        raise Refused("only the host may change the addresses")
    parse(multiaddr)
    addresses[name] = multiaddr
    temporary = PATH + ".new"
    with open(temporary, "w") as file:
        json.dump(addresses, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, PATH)


def parse(multiaddr: str) -> tuple[str, int, bool]:
    """``(host, port, tls)`` of ``/dns4/NAME/tcp/PORT[/http|/https]`` and the like."""
    parts = multiaddr.strip("/").split("/")
    if (
        len(parts) < 4
        or parts[0] not in ("ip4", "ip6", "dns", "dns4", "dns6")
        or parts[2] != "tcp"
        or not parts[3].isdigit()
        or not 0 < int(parts[3]) < 65536
        or parts[4:] not in ([], ["http"], ["https"], ["tls", "http"])
    ):
        raise Refused(f"{multiaddr!r} is no API address; expected e.g. /ip4/127.0.0.1/tcp/5001")
    return parts[1], int(parts[3]), parts[4:] in (["https"], ["tls", "http"])


def _request(path: str, query: dict[str, str], body: bytes = b"", content_type: str = "") -> bytes:
    if "local" not in addresses:
        raise Refused("the address of the IPFS daemon is not set; call set_local_api_multiaddr")
    host, port, tls = parse(addresses["local"])
    kind = http.client.HTTPSConnection if tls else http.client.HTTPConnection
    connection = kind(host, port, timeout=TIMEOUT)
    try:
        headers = {"Content-Type": content_type} if content_type else {}
        target = f"/api/v0/{path}?{urllib.parse.urlencode(query)}"
        connection.request("POST", target, body=body, headers=headers)
        response = connection.getresponse()
        data = response.read(MAX_CONTENT + 1)
    except (OSError, http.client.HTTPException) as error:
        raise Refused(f"the IPFS daemon at {addresses['local']} does not answer: {error}") from None
    finally:
        connection.close()
    if len(data) > MAX_CONTENT:
        raise Refused(f"more than {MAX_CONTENT} bytes")
    if response.status != 200:
        try:
            message = json.loads(data)["Message"]
        except (ValueError, KeyError, TypeError):
            message = f"HTTP {response.status}"
        raise Refused(f"IPFS: {message}")
    return data


@service.function
def set_local_api_multiaddr(multiaddr: str) -> None:
    """The API address this node uses."""
    _store("local", multiaddr)


@service.function
def set_external_api_multiaddr(multiaddr: str) -> None:
    """The API address told to clients."""
    _store("external", multiaddr)


@service.function
def get_local_api_multiaddr() -> dict[str, Any]:
    return {"multiaddr": addresses.get("local", "")}


@service.function
def get_external_api_multiaddr() -> dict[str, Any]:
    return {"multiaddr": addresses.get("external", "")}


@service.function
def put(content: str) -> dict[str, Any]:
    """Store base64 ``content`` and pin it; returns its CID."""
    try:
        data = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise Refused("content is not base64") from None
    mark = uuid.uuid4().hex
    body = (
        f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    body += data + f"\r\n--{mark}--\r\n".encode()
    reply = _request(
        "add",
        {"pin": "true", "cid-version": "1", "quieter": "true"},
        body,
        f"multipart/form-data; boundary={mark}",
    )
    return {"cid": json.loads(reply.splitlines()[-1])["Hash"]}


@service.function
def get(cid: str) -> dict[str, Any]:
    """The base64 content of ``cid``."""
    data = _request("cat", {"arg": cid, "length": str(MAX_CONTENT + 1)})
    return {"content": base64.b64encode(data).decode(), "size": len(data)}


@service.function
def exists(cid: str) -> dict[str, Any]:
    """Whether this daemon holds ``cid`` itself, without asking other peers."""
    try:
        _request("block/stat", {"arg": cid, "offline": "true"})
    except Refused as error:
        if "not found" in str(error) or "could not find" in str(error):
            return {"exists": False}
        raise
    return {"exists": True}


@service.function
def get_peer_id() -> dict[str, Any]:
    """The peer id of the daemon."""
    return {"peer_id": json.loads(_request("id", {}))["ID"]}


@service.function
def connect(multiaddr: str) -> None:
    """Connect the daemon to another one."""
    _request("swarm/connect", {"arg": multiaddr})


@service.function
def binary_version() -> dict[str, Any]:
    """What the configured ``ipfs`` program says it is."""
    path = str(service.config.get("ipfs_binary_path", "ipfs"))
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise Refused(f"{path}: {error}") from None
    return {"version": done.stdout.strip()}


if __name__ == "__main__":
    service.serve()
