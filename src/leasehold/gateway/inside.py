"""Looking inside a lease by HTTP: output with search, kept manifests, and the operator's shell.

Tenants and the operator get the same answers for the same questions; the tenant only about what the
credential permits, the operator about any lease, with the tenant's secrets left sealed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, WebSocket, get, websocket
from litestar.handlers import BaseRouteHandler
from litestar.params import QueryParameter
from litestar.response import Stream

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.gateway import streams
from leasehold.gateway.auth import (
    OPERATOR,
    Authenticator,
    operator,
    principal_of,
    tenant,
    unauthenticated,
)
from leasehold.gateway.manifests import Seq
from leasehold.gateway.ports import Workloads
from leasehold.manifest.service import ManifestService
from leasehold.model.market import LeaseId

Text = Annotated[str, QueryParameter(max_length=200, description="only lines that contain it")]
Tail = Annotated[int, QueryParameter(ge=0, le=10_000, description="newest lines to begin with")]
Hash = Annotated[str, QueryParameter(min_length=1, max_length=64, description="or its beginning")]

Asked = Request[Any, Any, Any]


def routes(manifest: ManifestService, workloads: Workloads) -> Sequence[BaseRouteHandler]:
    """Every route of this area."""

    async def output(
        lease: LeaseId, wanted: list[str], search: str, follow: bool, tail: int
    ) -> Stream:
        await manifest.lease(lease)  # NOT_FOUND, before anything is sent
        found = await workloads.search(lease, wanted, search, tail) if search else []

        async def encoded() -> AsyncIterator[bytes]:
            for line in found:
                yield msgspec.json.encode(line) + b"\n"
            if search:
                return
            try:
                async for line in workloads.logs(lease, wanted, follow=follow, tail=tail):
                    yield msgspec.json.encode(line) + b"\n"
            except LeaseholdError as error:
                if error.kind is not Kind.NOT_FOUND:  # nothing was written yet
                    raise

        return Stream(encoded(), media_type="application/x-ndjson")

    def own_lease(request: Asked, dseq: int, gseq: int, oseq: int) -> LeaseId:
        return LeaseId(principal_of(request).owner, dseq, gseq, oseq, manifest.provider)

    def any_lease(owner: str, dseq: int, gseq: int, oseq: int) -> LeaseId:
        return LeaseId(owner, dseq, gseq, oseq, manifest.provider)

    own = "/lease/{dseq:int}/{gseq:int}/{oseq:int}"
    every = "/v1/leases/{owner:str}/{dseq:int}/{gseq:int}/{oseq:int}"

    @get(f"{own}/output", guards=[tenant("logs")], tags=["lease"], operation_id="leaseOutput")
    async def own_output(
        request: Asked, dseq: Seq, gseq: Seq, oseq: Seq,
        service: str = "", search: Text = "", follow: bool = False, tail: Tail = 100,
    ) -> Stream:  # fmt: skip
        """Lines of output as JSON lines ``{service, name, message, at}``."""
        lease = own_lease(request, dseq, gseq, oseq)
        wanted = [name for name in service.split(",") if name]
        wanted = streams.permitted(principal_of(request), "logs", lease, wanted)
        return await output(lease, wanted, search, follow, tail)

    @get(f"{every}/output", guards=[operator], tags=["operator"], operation_id="anyLeaseOutput")
    async def any_output(
        owner: str, dseq: Seq, gseq: Seq, oseq: Seq,
        service: str = "", search: Text = "", follow: bool = False, tail: Tail = 100,
    ) -> Stream:  # fmt: skip
        """As the tenant's own route, for any lease."""
        wanted = [name for name in service.split(",") if name]
        return await output(any_lease(owner, dseq, gseq, oseq), wanted, search, follow, tail)

    async def kept(owner: str, dseq: int, hash: str, *, secrets: bool) -> Response[bytes]:
        found = await manifest.kept(owner, dseq, hash, secrets=secrets)
        return Response(msgspec.json.encode(found), media_type="application/json")

    @get(
        "/deployment/{dseq:int}/manifests/kept",
        guards=[tenant("get-manifest")],
        tags=["manifest"],
        operation_id="keptManifest",
    )
    async def own_kept(request: Asked, dseq: Seq, hash: Hash) -> Response[bytes]:
        """An accepted manifest, whole."""
        principal = principal_of(request)
        principal.require("get-manifest", dseq)
        return await kept(principal.owner, dseq, hash, secrets=True)

    manifests = "/v1/deployments/{owner:str}/{dseq:int}/manifests"

    @get(manifests, guards=[operator], tags=["operator"])
    async def any_history(owner: str, dseq: Seq) -> Any:
        """The kept manifests of any deployment, newest first: hash, sender, time, images."""
        return await manifest.history(owner, dseq)

    @get(
        "/v1/deployments/{owner:str}/{dseq:int}/manifests/kept",
        guards=[operator],
        tags=["operator"],
    )
    async def any_kept(owner: str, dseq: Seq, hash: Hash) -> Response[bytes]:
        """An accepted manifest of any deployment; the tenant's secrets stay sealed."""
        return await kept(owner, dseq, hash, secrets=False)

    @websocket(f"{every}/shell")
    async def any_shell(socket: WebSocket[Any, Any, Any]) -> None:
        auth: Authenticator = socket.app.state.auth
        try:
            if not auth.is_operator(socket):
                raise unauthenticated("the operator's token is needed (file operator.token)")
            socket.scope.setdefault("state", {})[OPERATOR] = True
            path = socket.path_params
            lease = any_lease(path["owner"], path["dseq"], path["gseq"], path["oseq"])
            body = streams.conversation(socket, lease, workloads)
        except LeaseholdError as error:
            await streams.refuse(socket, error)
            return
        await streams.converse(socket, body)

    return [own_output, any_output, own_kept, any_history, any_kept, any_shell]
