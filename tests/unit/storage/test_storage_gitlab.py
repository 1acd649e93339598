"""GitLab projects, against an HTTP double that checks every request."""

from __future__ import annotations

import json

import httpx
import pytest

from leasehold.storage.errors import Class, Marked, classify
from leasehold.storage.gitlab import Gitlab


class Server:
    """Remembers requests; knows one project after the first POST."""

    def __init__(self, status: int = 201) -> None:
        self.status = status
        self.made: dict[str, object] | None = None
        self.seen: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["PRIVATE-TOKEN"] == "secret"
        self.seen.append(f"{request.method} {request.url.raw_path.decode()}")
        if self.status != 201:
            return httpx.Response(self.status, json={})
        if request.method == "POST":
            body = json.loads(request.content)
            assert body == {
                "name": "leases-acme-1-web-data",
                "path": "leases-acme-1-web-data",
                "visibility": "private",
                "namespace_id": 9,
            }
            if self.made:
                return httpx.Response(400, json={"message": {"path": ["has already been taken"]}})
            self.made = {"id": 5, "ssh_url_to_repo": "git@gitlab:g/leases-acme-1-web-data.git"}
            return httpx.Response(201, json=self.made)
        if request.url.path.endswith("/groups/9"):
            return httpx.Response(200, json={"full_path": "top/g"})
        return httpx.Response(200, json=self.made)


async def test_a_project_is_made_once() -> None:
    server = Server()
    gitlab = Gitlab("https://gitlab.test/", "secret", 9, httpx.MockTransport(server))
    expected = (5, "git@gitlab:g/leases-acme-1-web-data.git")
    assert await gitlab.ensure_project("leases/acme/1/web/data") == expected
    assert await gitlab.ensure_project("leases/acme/1/web/data") == expected
    assert server.seen[1:] == [
        "POST /api/v4/projects",
        "GET /api/v4/groups/9",
        "GET /api/v4/projects/top%2Fg%2Fleases-acme-1-web-data",
    ]
    await gitlab.close()


@pytest.mark.parametrize(("status", "kind"), [(401, Class.STRONG), (503, Class.WEAK)])
async def test_refusals_and_failures_are_told_apart(status: int, kind: Class) -> None:
    gitlab = Gitlab("https://gitlab.test", "secret", 9, httpx.MockTransport(Server(status)))
    with pytest.raises(Marked) as failed:
        await gitlab.ensure_project("leases/acme/1/web/data")
    assert classify(failed.value) is kind


async def test_a_server_that_is_away_is_tried_again() -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    gitlab = Gitlab("https://gitlab.test", "secret", 9, httpx.MockTransport(away))
    with pytest.raises(Marked) as failed:
        await gitlab.ensure_project("leases/acme/1/web/data")
    assert classify(failed.value) is Class.WEAK
