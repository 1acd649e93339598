"""The transport ``grpc``: ``indexer.IndexerService/TaskRPC``, with messages of ``indexer_pb2``.

What a peer can beyond the base protocol travels in the stream's metadata, which old peers ignore:
the manager sends its own with the call, the worker answers with initial metadata at once. HTTP/2
keepalive stays off: servers of old workers end connections that ping more often than every five
minutes, and the protocol's own PING notices a dead peer anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.dispatch import indexer_pb2 as pb
from leasehold.dispatch.security import (
    check_token,
    parse_networks,
    resolve,
    split_address,
)
from leasehold.dispatch.settings import DispatchSettings
from leasehold.dispatch.transport import LinkClosed, OnStream
from leasehold.dispatch.wire import BATCH, DEFAULT_VERSION, FEATURES, Hello, Request, Response

SERVICE = "indexer.IndexerService"
METHOD = f"/{SERVICE}/TaskRPC"
ATTACH_SERVICE = "indexer.AttachService"
ATTACH = f"/{ATTACH_SERVICE}/Attach"

aio: Any = grpc.aio
"""The published type stubs lack parts of it."""

_BROKEN = (
    grpc.RpcError,
    grpc.aio.UsageError,
    grpc.aio.BaseError,
    asyncio.InvalidStateError,  # "RPC already finished", from a write that lost the race
)

Metadata = tuple[tuple[str, str], ...]


def options(settings: DispatchSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
    ]


# messages


def encode_request(request: Request) -> bytes:
    message = pb.TaskRequest(
        version=request.version,
        id=request.id,
        type=request.type,
        payload=request.payload,
        timeout_ms=int(request.timeout * 1000),
        attempt=request.attempt,
        credit=request.credit,
    )
    setattr(message, "from", request.sender)
    return message.SerializeToString()


def decode_requests(data: bytes) -> list[Request]:
    message = pb.TaskRequest.FromString(data)
    return [_request(message), *(_request(pb.TaskRequest.FromString(d)) for d in _more(message))]


def _request(message: pb.TaskRequest) -> Request:
    return Request(
        message.id,
        message.type,
        message.payload,
        getattr(message, "from"),
        message.version,
        message.timeout_ms / 1000,
        message.attempt,
        message.credit,
    )


def encode_response(response: Response) -> bytes:
    message = pb.TaskResponse(
        version=response.version,
        id=response.id,
        type=response.type,
        order=response.order,
        final=response.final,
        payload=response.payload,
    )
    if response.error:
        message.error.msg = response.error
        message.error.type = response.error_type
    return message.SerializeToString()


def decode_responses(data: bytes) -> list[Response]:
    message = pb.TaskResponse.FromString(data)
    return [_response(message), *(_response(pb.TaskResponse.FromString(d)) for d in _more(message))]


def _response(message: pb.TaskResponse) -> Response:
    error = message.error if message.HasField("error") else None
    return Response(
        message.id,
        message.type,
        message.order,
        message.final,
        message.payload,
        error.msg if error else "",
        error.type if error else "",
        message.version,
    )


def _more(message: pb.TaskRequest | pb.TaskResponse) -> Sequence[bytes]:
    """What travels with ``message``; ValueError when that is more than anybody may send."""
    if len(message.more) >= BATCH:
        raise ValueError(f"{len(message.more) + 1} messages in one, at most {BATCH} may be")
    return message.more


MORE_REQUESTS, MORE_RESPONSES = b"\x9a\x01", b"\x82\x01"
"""Tags of the fields ``more``: numbers 19 and 16, each the bytes of a message."""


def together(encoded: Sequence[bytes], tag: bytes) -> bytes:
    """Messages as one: the first, with the others in its field ``more``."""
    parts = [encoded[0]]
    for message in encoded[1:]:
        size = len(message)
        parts.append(tag)
        while size > 0x7F:
            parts.append(bytes((size & 0x7F | 0x80,)))
            size >>= 7
        parts += (bytes((size,)), message)
    return b"".join(parts)


@dataclass(frozen=True)
class Codec:
    """How one end of a stream writes and reads; both directions in one place."""

    encode: Callable[[Any], bytes]
    tag: bytes
    decode: Callable[[bytes], list[Any]]

    def frames(self, messages: Sequence[Any], hello: Hello) -> list[bytes]:
        """What to write for ``messages`` to a peer that said ``hello``."""
        encoded = [self.encode(message) for message in messages]
        if len(encoded) == 1 or "batch" not in hello.features:
            return encoded
        return [together(encoded, self.tag)]


MANAGER_CODEC = Codec(encode_request, MORE_REQUESTS, decode_responses)
WORKER_CODEC = Codec(encode_response, MORE_RESPONSES, decode_requests)

# what a peer says about itself


def metadata_of(hello: Hello, token: str) -> Metadata:
    items = [
        ("leasehold-features", ",".join(sorted(hello.features))),
        ("leasehold-concurrency", str(hello.concurrency)),
        ("leasehold-id", hello.id),
        ("leasehold-network", hello.network),
        ("leasehold-chain-id", hello.chain_id),
        ("leasehold-version", hello.version),
    ]
    if token:
        items.append(("authorization", f"Bearer {token}"))
    return tuple((key, value) for key, value in items if value not in ("", "0"))


def hello_of(metadata: Sequence[tuple[str, Any]] | None, peer: str) -> Hello:
    known: Mapping[str, str] = {key: str(value) for key, value in metadata or ()}
    concurrency = known.get("leasehold-concurrency", "0")
    return Hello(
        features=FEATURES & frozenset(known.get("leasehold-features", "").split(",")),
        concurrency=int(concurrency) if concurrency.isascii() and concurrency.isdigit() else 0,
        peer=peer,
        id=known.get("leasehold-id", ""),
        network=known.get("leasehold-network", ""),
        chain_id=known.get("leasehold-chain-id", ""),
        version=known.get("leasehold-version", DEFAULT_VERSION),
    )


# links


class _Link:
    """One end of a stream; what came together is given out one by one."""

    hello: Hello

    def __init__(self, stream: Any, codec: Codec) -> None:
        self._stream = stream
        self._codec = codec
        self._received: deque[Any] = deque()

    async def send(self, *messages: Any) -> None:
        try:
            for frame in self._codec.frames(messages, self.hello):
                await self._stream.write(frame)
        except _BROKEN as error:
            raise LinkClosed(_reason(error)) from None

    async def receive(self) -> Any:
        if self._received:
            return self._received.popleft()
        try:
            data = await self._stream.read()
            await self._greeted()
        except _BROKEN as error:
            raise LinkClosed(_reason(error)) from None
        if data is aio.EOF:
            return None
        try:
            self._received.extend(self._codec.decode(data))
        except Exception as error:
            raise LinkClosed(f"undecodable message: {error}") from None
        return self._received.popleft()

    async def _greeted(self) -> None:
        """Something was received: what the peer says about itself is known."""


class _CallerLink(_Link):
    """The end of a stream that dialled."""

    def __init__(self, channel: grpc.aio.Channel, call: Any, codec: Codec, peer: str) -> None:
        super().__init__(call, codec)
        self.hello = Hello(peer=peer)
        self._channel = channel
        self._met = False

    async def _greeted(self) -> None:
        if not self._met:
            self._met = True
            self.hello = hello_of(await self._stream.initial_metadata(), self.hello.peer)

    async def close(self) -> None:
        self._stream.cancel()
        await self._channel.close(None)


class _ServerLink(_Link):
    """The end of a stream that was dialled."""

    def __init__(self, context: Any, hello: Hello, codec: Codec) -> None:
        super().__init__(context, codec)
        self.hello = hello

    async def close(self) -> None:
        """Ends when the handler returns."""


def _reason(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__


def server_credentials(settings: DispatchSettings) -> grpc.ServerCredentials | None:
    """For a gRPC server; clients need a certificate when ``tls_ca`` is set. None: no TLS."""
    if not settings.tls_cert:
        return None
    pair = (Path(settings.tls_key).read_bytes(), Path(settings.tls_cert).read_bytes())
    ca = Path(settings.tls_ca).read_bytes() if settings.tls_ca else None
    return grpc.ssl_server_credentials([pair], ca, require_client_auth=ca is not None)


def channel_credentials(settings: DispatchSettings) -> grpc.ChannelCredentials | None:
    """For a gRPC client, with the own certificate when there is one. None: no TLS."""
    if not settings.tls_ca and not settings.tls_cert:
        return None
    ca = Path(settings.tls_ca).read_bytes() if settings.tls_ca else None
    key = Path(settings.tls_key).read_bytes() if settings.tls_key else None
    cert = Path(settings.tls_cert).read_bytes() if settings.tls_cert else None
    return grpc.ssl_channel_credentials(ca, key, cert)


class GrpcDialer:
    """Dials workers; see :func:`leasehold.dispatch.security.resolve` for what is refused."""

    type = "grpc"

    def __init__(self, settings: DispatchSettings, hello: Hello | None = None) -> None:
        self.settings = settings
        self.hello = hello or Hello(features=FEATURES)
        self._allowed = parse_networks(settings.dial_allow)
        self._credentials = channel_credentials(settings)

    def check(self, address: str) -> None:
        split_address(address)

    async def dial(self, address: str) -> _CallerLink:
        target = await resolve(address, self._allowed)
        return open_stream(
            self.settings,
            target,
            method=METHOD,
            host=split_address(address)[0],
            hello=self.hello,
            credentials=self._credentials,
            codec=MANAGER_CODEC,
        )


def open_stream(
    settings: DispatchSettings,
    target: str,
    *,
    method: str,
    host: str,
    hello: Hello,
    credentials: grpc.ChannelCredentials | None,
    codec: Codec,
) -> _CallerLink:
    """One channel with one stream; ``host`` is the name a certificate must have."""
    settable: list[tuple[str, Any]] = [*options(settings), ("grpc.enable_retries", 0)]
    if credentials is None:
        channel = grpc.aio.insecure_channel(target, options=settable)
    else:
        settable.append(("grpc.ssl_target_name_override", host))
        channel = grpc.aio.secure_channel(target, credentials, options=settable)
    stream_stream: Any = channel.stream_stream  # raw bytes both ways, which its stub does not know
    call = stream_stream(method)(metadata=metadata_of(hello, settings.token))
    return _CallerLink(channel, call, codec, target)


class _StreamHandler(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    def __init__(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> None:
        self._method = method
        self._handler = handler

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handler if handler_call_details.method == self._method else None


class StreamServer:
    """A gRPC server of one bidirectional method that runs ``on_stream`` per stream."""

    def __init__(
        self,
        settings: DispatchSettings,
        *,
        host: str,
        port: int,
        method: str,
        codec: Codec,
        setting: str,
    ) -> None:
        self.settings = settings
        self.host = host
        self.port = port
        self._method = method
        self._codec = codec
        self._setting = setting
        self._server: grpc.aio.Server | None = None
        self._streams = 0

    async def start(self, on_stream: Any, hello: Hello) -> str:
        settings = self.settings
        told = metadata_of(hello, "")

        async def serve(_requests: object, context: Any) -> None:
            metadata = context.invocation_metadata()
            try:
                check_token(settings.token, dict(metadata or ()).get("authorization"))
            except LeaseholdError as error:
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, error.message)
            if self._streams >= settings.max_streams:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams")
            self._streams += 1
            try:
                await context.send_initial_metadata(told)
                link = _ServerLink(context, hello_of(metadata, context.peer()), self._codec)
                await on_stream(link)
            finally:
                self._streams -= 1

        handler = grpc.stream_stream_rpc_method_handler(serve)
        server = grpc.aio.server(options=[*options(settings), ("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((_StreamHandler(self._method, handler),))
        where = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        credentials = server_credentials(settings)
        try:
            self.port = (
                server.add_insecure_port(where)
                if credentials is None
                else server.add_secure_port(where, credentials)
            )
        except RuntimeError:
            await server.stop(0)
            raise _cannot_bind(self.host, self.port, self._setting) from None
        await server.start()
        self._server = server
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    async def stop(self) -> None:
        if self._server is not None:
            with contextlib.suppress(Exception):
                await self._server.stop(0.2)


class GrpcListener(StreamServer):
    """A worker's server for managers that dial it."""

    type = "grpc"

    def __init__(self, settings: DispatchSettings) -> None:
        super().__init__(
            settings,
            host=settings.worker_host,
            port=settings.worker_port,
            method=METHOD,
            codec=WORKER_CODEC,
            setting="dispatch.worker_port",
        )


class AttachServer(StreamServer):
    """A manager's server for workers that cannot be dialled."""

    type = "grpc-attach"

    def __init__(self, settings: DispatchSettings) -> None:
        super().__init__(
            settings,
            host=settings.manager_host,
            port=settings.attach_port,
            method=ATTACH,
            codec=MANAGER_CODEC,
            setting="dispatch.attach_port",
        )


def attach(settings: DispatchSettings, address: str, hello: Hello) -> _CallerLink:
    """A worker's stream to a manager's attach port."""
    return open_stream(
        settings,
        address,
        method=ATTACH,
        host=split_address(address)[0],
        hello=hello,
        credentials=channel_credentials(settings),
        codec=WORKER_CODEC,
    )


def _cannot_bind(host: str, port: int, setting: str) -> LeaseholdError:
    from leasehold.core.web import holder_of

    return LeaseholdError(
        "port_in_use",
        f"cannot listen on {host}:{port}, which is held by {holder_of(port)}; set {setting}"
        " to another port",
        kind=Kind.UNAVAILABLE,
        path=setting,
        got=port,
    )


make_dialer = GrpcDialer
make_listener = GrpcListener
make_attach_server = AttachServer

__all__ = [
    "AttachServer",
    "GrpcDialer",
    "GrpcListener",
    "OnStream",
    "attach",
    "decode_requests",
    "decode_responses",
    "encode_request",
    "encode_response",
    "together",
]
