"""The transport ``grpc``: ``indexer.IndexerService/TaskRPC``, with messages of ``indexer_pb2``.

What a peer can beyond the base protocol travels in the stream's metadata, which old peers ignore:
the manager sends its own with the call, the worker answers with initial metadata at once. HTTP/2
keepalive stays off: servers of old workers end connections that ping more often than every five
minutes, and the protocol's own PING notices a dead peer anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
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
from leasehold.dispatch.wire import DEFAULT_VERSION, FEATURES, Hello, Request, Response

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


def decode_request(data: bytes) -> Request:
    message = pb.TaskRequest.FromString(data)
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


def decode_response(data: bytes) -> Response:
    message = pb.TaskResponse.FromString(data)
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


class _CallerLink:
    """The end of a stream that dialled; sends ``S`` and receives ``R``."""

    def __init__(self, channel: grpc.aio.Channel, call: Any, decode: Any, peer: str) -> None:
        self._channel = channel
        self._call = call
        self._decode = decode
        self._hello: Hello | None = None
        self._early = Hello(peer=peer)

    @property
    def hello(self) -> Hello:
        return self._hello or self._early

    async def send(self, message: Any) -> None:
        try:
            await self._call.write(message)
        except _BROKEN as error:
            raise LinkClosed(_reason(error)) from None

    async def receive(self) -> Any:
        try:
            data = await self._call.read()
            if self._hello is None:
                self._hello = hello_of(await self._call.initial_metadata(), self._early.peer)
        except _BROKEN as error:
            raise LinkClosed(_reason(error)) from None
        if data is aio.EOF:
            return None
        try:
            return self._decode(data)
        except Exception as error:
            raise LinkClosed(f"undecodable message: {error}") from None

    async def close(self) -> None:
        self._call.cancel()
        await self._channel.close(None)


class _ServerLink:
    """The end of a stream that was dialled."""

    def __init__(self, context: Any, hello: Hello, decode: Any) -> None:
        self._context = context
        self.hello = hello
        self._decode = decode

    async def send(self, message: Any) -> None:
        try:
            await self._context.write(message)
        except _BROKEN as error:
            raise LinkClosed(_reason(error)) from None

    async def receive(self) -> Any:
        try:
            data = await self._context.read()
        except _BROKEN as error:
            raise LinkClosed(_reason(error)) from None
        if data is aio.EOF:
            return None
        try:
            return self._decode(data)
        except Exception as error:
            raise LinkClosed(f"undecodable message: {error}") from None

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
            encode=encode_request,
            decode=decode_response,
        )


def open_stream(
    settings: DispatchSettings,
    target: str,
    *,
    method: str,
    host: str,
    hello: Hello,
    credentials: grpc.ChannelCredentials | None,
    encode: Any,
    decode: Any,
) -> _CallerLink:
    """One channel with one stream; ``host`` is the name a certificate must have."""
    settable: list[tuple[str, Any]] = [*options(settings), ("grpc.enable_retries", 0)]
    if credentials is None:
        channel = grpc.aio.insecure_channel(target, options=settable)
    else:
        settable.append(("grpc.ssl_target_name_override", host))
        channel = grpc.aio.secure_channel(target, credentials, options=settable)
    method_call: Any = channel.stream_stream(
        method, request_serializer=encode, response_deserializer=None
    )
    call = method_call(metadata=metadata_of(hello, settings.token))
    return _CallerLink(channel, call, decode, target)


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
        encode: Any,
        decode: Any,
        setting: str,
    ) -> None:
        self.settings = settings
        self.host = host
        self.port = port
        self._method = method
        self._encode = encode
        self._decode = decode
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
                link = _ServerLink(context, hello_of(metadata, context.peer()), self._decode)
                await on_stream(link)
            finally:
                self._streams -= 1

        handler = grpc.stream_stream_rpc_method_handler(
            serve, request_deserializer=None, response_serializer=self._encode
        )
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
            encode=encode_response,
            decode=decode_request,
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
            encode=encode_request,
            decode=decode_response,
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
        encode=encode_response,
        decode=decode_request,
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
    "decode_request",
    "decode_response",
    "encode_request",
    "encode_response",
]
