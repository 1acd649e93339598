"""A gRPC server whose callers are known by tokens; what the log and the volumes are served by.

A call is a method ``_name`` of the subclass, given the request and what the token reaches. It
raises ``LeaseholdError``, which the caller gets as the status of its kind.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.service import Service
from leasehold.events import rpc
from leasehold.events.settings import Reach

GRACE = 1.0
"""Seconds calls under way may take when it stops."""


class RpcServer(Service):
    """Listens on ``host:port`` (0 picks one); ``tokens`` maps each token to its reach.

    ``setting`` is what to change when the port is taken.
    """

    def __init__(
        self,
        name: str,
        tokens: Mapping[str, Reach],
        host: str,
        port: int,
        credentials: grpc.ServerCredentials | None,
        clock: Clock | None,
        *,
        setting: str,
    ) -> None:
        super().__init__(name, clock=clock)
        self.tokens = {token.encode(): reach for token, reach in tokens.items()}
        self.host, self.port = host, port
        self.credentials = credentials
        self._setting = setting
        self._handlers: list[Any] = []

    def add(
        self,
        service: str,
        unary: Mapping[str, tuple[Any, Any]],
        streams: Mapping[str, tuple[Any, Any]],
    ) -> None:
        """Serve ``service``; call names are mapped to the types of request and response."""
        handlers: dict[str, Any] = {}
        for name, (request, response) in unary.items():
            handlers[name] = grpc.unary_unary_rpc_method_handler(
                self._unary(getattr(self, f"_{name.lower()}")),
                request_deserializer=request.FromString,
                response_serializer=response.SerializeToString,
            )
        for name, (request, response) in streams.items():
            handlers[name] = grpc.unary_stream_rpc_method_handler(
                self._stream(getattr(self, f"_{name.lower()}")),
                request_deserializer=request.FromString,
                response_serializer=response.SerializeToString,
            )
        self._handlers.append(grpc.method_handlers_generic_handler(service, handlers))

    async def start(self) -> None:
        # Without it a second server on the same port would silently share its calls.
        self._server = grpc.aio.server(options=[*rpc.OPTIONS, ("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers(tuple(self._handlers))
        address = f"{self.host}:{self.port}"
        try:
            if self.credentials is not None:
                self.port = self._server.add_secure_port(address, self.credentials)
            else:
                self.port = self._server.add_insecure_port(address)
        except RuntimeError:
            await self._server.stop(0)  # one that nobody stops keeps the process from ending
            raise LeaseholdError(
                "port_in_use",
                f"{self.name} cannot listen on {address}; is something else there?",
                kind=Kind.UNAVAILABLE,
                path=self._setting,
                got=address,
            ) from None
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(grace=GRACE)

    def _reach(self, context: Any) -> Reach:
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        token = str(given).removeprefix("Bearer ").encode()
        for known, reach in self.tokens.items():
            if hmac.compare_digest(known, token):
                return reach
        raise LeaseholdError(
            "log_token_unknown", "the token is not known here", kind=Kind.UNAUTHENTICATED
        )

    def _unary(self, method: Any) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            try:
                return await method(request, self._reach(context))
            except LeaseholdError as error:
                await context.abort(*rpc.status_of(error))

        return handle

    def _stream(self, method: Any) -> Any:
        async def handle(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                async for message in method(request, self._reach(context)):
                    yield message
            except LeaseholdError as error:
                await context.abort(*rpc.status_of(error))

        return handle
