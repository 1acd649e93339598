"""Routes of volumes: everything for the operator; for tenants a look at their own, and what may be
done with frozen ones. Another's volume is one that is not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, post
from litestar.handlers import BaseRouteHandler
from litestar.params import PathParameter, QueryParameter

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.gateway.auth import any_tenant, operator, principal_of
from leasehold.gateway.claims import FULL
from leasehold.storage.progress import Far
from leasehold.storage.shadow import Author
from leasehold.storage.volumes import Volumes


class Which(msgspec.Struct, forbid_unknown_fields=True):
    """A volume by id or path; ``author`` and ``reason`` go into its history."""

    volume: str
    author: str = "operator"
    reason: str = ""


class Restore(msgspec.Struct, forbid_unknown_fields=True):
    """``at`` is a snapshot's id (or its beginning), or a time in seconds UTC."""

    volume: str
    at: str | float
    author: str = "operator"


class Move(msgspec.Struct, forbid_unknown_fields=True):
    """The new global path, and the new host where it changes."""

    volume: str
    path: str
    host: str = ""


class Adopt(msgspec.Struct, forbid_unknown_fields=True):
    """The deployment that gets the volume, and which of its services' volumes it becomes."""

    dseq: Annotated[int, msgspec.Meta(ge=1)]
    service: str
    volume: str


CHANGES = 10_000
"""Most changes one answer holds."""

Repo = Annotated[str, PathParameter(max_length=64, description="a volume's id")]
Commit = Annotated[
    str, QueryParameter(pattern="^[0-9a-f]{4,64}$", description="a snapshot's id or its beginning")
]


def routes(volumes: Volumes) -> Sequence[BaseRouteHandler]:
    """Every route of this area."""
    storage = volumes.storage

    async def history(repo: str) -> list[dict[str, Any]]:
        return [snapshot._asdict() for snapshot in await storage.history(repo)]

    async def changes(repo: str, old: str, new: str | None) -> list[dict[str, Any]]:
        return [
            {
                "how": change.how,
                "path": change.path,
                "old": change.old._asdict() if change.old else None,
                "new": change.new._asdict() if change.new else None,
            }
            for change in (await storage.diff(repo, old, new))[:CHANGES]
        ]

    @get("/v1/volumes", guards=[operator], tags=["volumes"])
    async def volumes_list(prefix: str = "") -> list[dict[str, Any]]:
        """Volumes at or below a global path."""
        return await volumes.ls(prefix)

    @get("/v1/volumes/history", guards=[operator], tags=["volumes"])
    async def volumes_history(volume: str) -> list[dict[str, Any]]:
        """Snapshots, newest first."""
        return await history(await volumes.find(volume))

    @get("/v1/volumes/diff", guards=[operator], tags=["volumes"])
    async def volumes_diff(volume: str, old: str, new: str | None = None) -> list[dict[str, Any]]:
        """What changed between two snapshots, at most 10,000 paths; ``new`` defaults to the
        newest."""
        return await changes(await volumes.find(volume), old, new)

    @get("/v1/volumes/progress", guards=[operator], tags=["volumes"], sync_to_thread=False)
    def volumes_progress() -> dict[str, Far]:
        """How far the work on each volume's files is, in bytes: those worked on just now, by id."""
        return storage.progress.all()

    @post("/v1/volumes/snapshot", guards=[operator], tags=["volumes"], status_code=200)
    async def volumes_snapshot(data: Which) -> dict[str, Any]:
        """Record a volume as it is now."""
        repo = await volumes.find(data.volume)
        taken = await storage.snapshot(repo, Author(data.author), data.reason or "on demand")
        return taken._asdict()

    @post("/v1/volumes/restore", guards=[operator], tags=["volumes"], status_code=200)
    async def volumes_restore(data: Restore) -> dict[str, Any]:
        """Bring a volume back to a snapshot; what is there now is recorded first."""
        repo = await volumes.find(data.volume)
        return vars(await storage.restore(repo, data.at, Author(data.author)))

    @post("/v1/volumes/change/{action:str}", guards=[operator], tags=["volumes"], status_code=202)
    async def volumes_change(action: str, data: Which) -> dict[str, Any]:
        """Freeze, unfreeze, archive or unarchive a volume; answers with the workflow."""
        repo = await volumes.find(data.volume)
        workflow = await volumes.change(action, repo, author=data.author, reason=data.reason)
        return {"volume": repo, "workflow": workflow}

    @post("/v1/volumes/move", guards=[operator], tags=["volumes"], status_code=202)
    async def volumes_move(data: Move) -> dict[str, Any]:
        """Move a volume to another path or host; answers with the workflow."""
        repo = await volumes.find(data.volume)
        return {"volume": repo, "workflow": await volumes.move(repo, data.path, data.host)}

    @post("/v1/volumes/clear", guards=[operator], tags=["volumes"], status_code=200)
    async def volumes_clear(data: Which) -> dict[str, Any]:
        """Forget a volume's stored error and try again."""
        repo = await volumes.find(data.volume)
        await volumes.repos.clear_error(repo)
        return {"volume": repo}

    @get("/volumes", guards=[any_tenant], tags=["volumes"])
    async def own_volumes(request: Request[Any, Any, Any]) -> list[dict[str, Any]]:
        """The tenant's volumes, those of closed leases too."""
        return await volumes.ls(f"leases/{principal_of(request).owner}")

    @get("/volumes/{repo:str}/history", guards=[any_tenant], tags=["volumes"])
    async def own_history(repo: Repo, request: Request[Any, Any, Any]) -> list[dict[str, Any]]:
        """Snapshots of one of the tenant's volumes, newest first."""
        await volumes.owned(_owner(request), repo)
        return await history(repo)

    @get("/volumes/{repo:str}/diff", guards=[any_tenant], tags=["volumes"])
    async def own_diff(
        repo: Repo, request: Request[Any, Any, Any], old: Commit, new: Commit | None = None
    ) -> list[dict[str, Any]]:
        """What changed between two snapshots of one of the tenant's volumes, at most 10,000 paths;
        ``new`` defaults to the newest."""
        await volumes.owned(_owner(request), repo)
        return await changes(repo, old, new)

    @delete("/volumes/{repo:str}", guards=[any_tenant], tags=["volumes"], status_code=204)
    async def purge_volume(repo: str, request: Request[Any, Any, Any]) -> None:
        """Delete one of the tenant's frozen volumes for good."""
        await volumes.purge(_owner(request), repo)

    @post("/volumes/{repo:str}/adopt", guards=[any_tenant], tags=["volumes"], status_code=202)
    async def adopt_volume(
        repo: str, data: Adopt, request: Request[Any, Any, Any]
    ) -> dict[str, Any]:
        """Give one of the tenant's frozen volumes to another deployment, before its manifest is
        sent; answers with the workflow that moves it there."""
        workflow = await volumes.adopt(_owner(request), repo, data.dseq, data.service, data.volume)
        return {"volume": repo, "workflow": workflow}

    return [
        volumes_list,
        volumes_history,
        volumes_diff,
        volumes_progress,
        volumes_snapshot,
        volumes_restore,
        volumes_change,
        volumes_move,
        volumes_clear,
        own_volumes,
        own_history,
        own_diff,
        purge_volume,
        adopt_volume,
    ]


def _owner(request: Request[Any, Any, Any]) -> str:
    """The tenant; a volume outlives its lease, so a token for some leases is not enough."""
    principal = principal_of(request)
    if principal.access != FULL:
        raise LeaseholdError(
            "forbidden",
            "this needs a token with full access: a volume outlives its lease",
            kind=Kind.FORBIDDEN,
            expected="full",
            got=principal.access.access,
        )
    return principal.owner
