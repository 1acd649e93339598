"""Creates the GitLab project of a repo through GitLab's REST API (v4)."""

from __future__ import annotations

from urllib.parse import quote

import httpx

from leasehold.core.errors import LeaseholdError, unavailable
from leasehold.storage.errors import Strong, Weak

TIMEOUT = 10.0
"""Seconds one request may take."""


class Gitlab:
    """One GitLab server. ``group`` is the namespace id for new projects, 0 for the user's own."""

    def __init__(
        self,
        url: str,
        token: str,
        group: int = 0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.group = group
        self._client = httpx.AsyncClient(
            base_url=f"{url.rstrip('/')}/api/v4",
            headers={"PRIVATE-TOKEN": token},
            timeout=TIMEOUT,
            transport=transport,
        )

    async def ensure_project(self, path: str) -> tuple[int, str]:
        """The project for the repo at the global ``path``: ``(id, SSH URL)``; made when missing."""
        slug = path.replace("/", "-").lower()[:255]
        body: dict[str, object] = {"name": slug, "path": slug, "visibility": "private"}
        if self.group:
            body["namespace_id"] = self.group
        response = await self._send("POST", "/projects", json=body)
        if response.status_code == 400 and "taken" in response.text:
            response = await self._find(slug)
        if response.status_code in (401, 403):
            raise Strong(
                LeaseholdError(
                    "gitlab_refused", f"GitLab refuses the access token ({response.status_code})"
                )
            )
        if response.status_code not in (200, 201):
            raise Weak(
                unavailable(
                    "gitlab_failed", f"GitLab answered {response.status_code} for a new project"
                )
            )
        project = response.json()
        return int(project["id"]), str(project["ssh_url_to_repo"])

    async def _find(self, slug: str) -> httpx.Response:
        """A project made by us before, whose creation we did not live to hear of."""
        if self.group:
            group = await self._send("GET", f"/groups/{self.group}")
        else:
            group = await self._send("GET", "/user")
        if group.status_code != 200:
            return group
        found = group.json()
        namespace = found.get("full_path") or found["username"]
        return await self._send("GET", f"/projects/{quote(f'{namespace}/{slug}', safe='')}")

    async def _send(self, method: str, url: str, *, json: object = None) -> httpx.Response:
        try:
            return await self._client.request(method, url, json=json)
        except httpx.HTTPError as error:
            raise Weak(unavailable("gitlab_unreachable", f"GitLab: {error!r}")) from error

    async def close(self) -> None:
        await self._client.aclose()
