"""What the mirror and the transfer share: paths, headers, and bodies on plain ASGI.

No framework on the data plane: a request is a scope, an answer two kinds of messages. A body that
cannot be finished is broken off (the connection ends without the promised bytes), so that no
client takes a part for the whole.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any, NamedTuple

import msgspec

from leasehold.core.errors import LeaseholdError
from leasehold.images.ports import ContentKind, Reader
from leasehold.model.digest import is_digest
from leasehold.model.reference import is_repository

SEND = 512 * 1024
"""Bytes of one ASGI message; 256 KiB to 1 MiB measured alike, less is slower."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class Path(NamedTuple):
    """``/v2/<repository>/{manifests|blobs}/<target>``."""

    repository: str
    kind: ContentKind
    target: str

    @property
    def by_digest(self) -> bool:
        return self.target.startswith("sha256:")

    @property
    def valid(self) -> bool:
        """True when a target that looks like a digest is one."""
        return is_digest(self.target)


class BrokenOff(Exception):
    """The body cannot be finished; the server closes the connection."""


def parse_path(path: str, *, any_repository: bool = False) -> Path | None:
    """The parts of a registry path; None when it is none.

    The repository is what stands before the last ``/manifests/``, else the last ``/blobs/``.
    """
    if not path.startswith("/v2/") or len(path) > 1024:
        return None
    for word, kind in (("/manifests/", ContentKind.MANIFEST), ("/blobs/", ContentKind.BLOB)):
        at = path.rfind(word)
        if at < 3:
            continue
        repository, target = path[4:at], path[at + len(word) :]
        if not target or "/" in target or not (any_repository or is_repository(repository)):
            return None
        return Path(repository, kind, target)
    return None


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that lower-case name."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


async def answer(
    send: Send, status: int, body: bytes = b"", headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """A whole answer at once."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [*headers, (b"content-length", b"%d" % len(body))],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def answer_error(
    send: Send, status: int, error: LeaseholdError, headers: Headers, *, bodiless: bool = False
) -> None:
    """An error in the registry's form; ``Retry-After`` where trying again may help."""
    extra = list(headers)
    if error.retry_after is not None:
        extra.append((b"retry-after", b"%d" % max(1, round(error.retry_after))))
    body = msgspec.json.encode({"errors": [{"code": error.code.upper(), "message": error.message}]})
    extra.append((b"content-type", b"application/json"))
    await answer(send, status, b"" if bodiless else body, extra)


async def send_start(send: Send, status: int, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def send_file(send: Send, reader: Reader, start: int, end: int) -> int:
    """``reader``'s bytes as the body; how many. Raises :class:`BrokenOff` when they end early."""
    position = start
    while position < end:
        piece = await reader.read(position, min(SEND, end - position))
        if not piece:
            raise BrokenOff
        position += len(piece)
        await send({"type": "http.response.body", "body": piece, "more_body": position < end})
    if start == end:
        await send({"type": "http.response.body", "body": b""})
    return position - start


async def send_stream(send: Send, pieces: AsyncIterator[bytes]) -> int:
    """A body that is still arriving; the caller ends it with :func:`send_end`."""
    sent = 0
    async for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        sent += len(piece)
    return sent


async def send_end(send: Send) -> None:
    await send({"type": "http.response.body", "body": b"", "more_body": False})
