"""A real node in a test: real keeper, processes and SQLite, nothing left behind.

::

    async with node_in(tmp_path, package) as node:
        assert (await node.call("hello", "greet", ["you"]))["value"] == "hello you"
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from leasehold.core.service import running
from leasehold.node.distro import PackageDistro, ServiceDistro
from leasehold.node.service import Node
from leasehold.node.settings import NodeSettings, SystemServices

NOTHING_BUNDLED = SystemServices(enable=())


@contextlib.asynccontextmanager
async def node_in(
    root: Path,
    *packages: PackageDistro,
    keep: bool = False,
    settings: NodeSettings | None = None,
    system_services: SystemServices = NOTHING_BUNDLED,
    **options: Any,
) -> AsyncIterator[Node]:
    """A node with ``packages`` deployed. ``keep``: its services go on when the block ends, for a
    later node in the same ``root``; without it everything is ended."""
    node = Node(
        root,
        settings=settings or NodeSettings(health_sec=0, deploy_backoff_sec=0.01),
        system_services=system_services,
        packages=packages,
        **options,
    )
    try:
        async with running(node):
            await deployed(node)
            yield node
            if not keep:
                await node.remove_everything()
    except BaseException:
        if not keep:
            await end_keeper(root)
        raise


async def deployed(node: Node) -> None:
    """Return when the packages of ``node`` are in place, or the node has failed."""
    waiting = asyncio.ensure_future(node.deployed.wait())
    stopped = asyncio.ensure_future(node.wait_stop_requested())
    try:
        await asyncio.wait({waiting, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        stopped.cancel()


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 10.0) -> None:
    """Return when ``condition`` holds; TimeoutError after ``seconds``."""
    async with asyncio.timeout(seconds):
        while True:
            value = condition()
            if value if isinstance(value, bool) else await value:
                return
            await asyncio.sleep(0.005)


async def end_keeper(root: Path) -> None:
    """End the keeper of ``root`` with all its processes, when there is one."""
    from leasehold.node.supervisor import Supervisor

    if not (root / "keeper.sock").exists():
        return
    with contextlib.suppress(Exception):
        supervisor = Supervisor(root)
        async with running(supervisor):
            await supervisor.shutdown_keeper()


def python_service(name: str, source: str, **fields: Any) -> ServiceDistro:
    """A host process that runs ``source``, which sees ``service`` and ``Refused``, and serves."""
    text = (
        "from leasehold.node.sdk import Refused, Service\n"
        f"service = Service()\n{source}\nservice.serve()\n"
    )
    return ServiceDistro(
        name=name,
        run=("{python}", "-S", "{app}/service.py"),
        artifacts={"service.py": text.encode()},
        **fields,
    )
