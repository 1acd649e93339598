"""Nodes whose kubelet is played: pods that are scheduled to them get the status their image names.

Everything else is real (API server, controllers, scheduler), so what a kubelet reports can be put
to the driver exactly, also what is hard to bring about: registries that fail, programs that end.

An image is ``<behaviour>[:anything]``: ``ok`` runs and answers, ``silent`` runs and does not
answer, ``missing`` is not in its registry, ``flaky`` cannot be pulled for now, ``crash`` ends at
once, again and again, ``broken`` cannot be started.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
from typing import Any

import httpx2

from leasehold.core.errors import LeaseholdError
from leasehold.deploy.kubernetes.api import EVERYWHERE, Api, Object


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class ActingKubelet:
    """``linger`` is how long a pod takes to end, in seconds; ``nodes`` name to CPU count."""

    def __init__(self, api: Api, nodes: dict[str, int], *, linger: float = 0.05) -> None:
        self.api = api
        self.nodes = nodes
        self.linger = linger
        self.delay = 0.0
        self.started: list[str] = []
        """Names of pods that came up, in order: one that appears again was restarted."""
        self._known: dict[str, asyncio.Task[None]] = {}

    async def register(self) -> None:
        for name, cpus in self.nodes.items():
            node = {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}},
            }
            await self.api.apply(node, manager="kubelet")
            amounts = {
                "cpu": str(cpus),
                "memory": "64Gi",
                "ephemeral-storage": "500Gi",
                "pods": "500",
            }
            status = {
                "capacity": amounts,
                "allocatable": amounts,
                "conditions": [
                    {"type": "Ready", "status": "True", "reason": "KubeletReady",
                     "message": "playing", "lastHeartbeatTime": now(),
                     "lastTransitionTime": now()}
                ],
            }  # fmt: skip
            await self.patch(f"api/v1/nodes/{name}/status", {"status": status})

    async def patch(self, url: str, body: Any) -> None:
        answer = await self.api.raw.patch(
            url, json=body, headers={"Content-Type": "application/merge-patch+json"}
        )
        if answer.status_code not in (200, 404, 409):
            raise AssertionError(answer.text)

    async def run(self) -> None:
        """Until cancelled; an API server that goes away is waited for."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    found, version = await self.api.list("Pod", EVERYWHERE)
                    for pod in found:
                        self._take(tasks, pod)
                    async for _, pod in self.api.watch("Pod", EVERYWHERE, version, labels=None):
                        self._take(tasks, pod)
                except LeaseholdError:
                    await asyncio.sleep(0.2)

    def _take(self, tasks: asyncio.TaskGroup, pod: Object) -> None:
        if pod["spec"].get("nodeName") not in self.nodes:
            return
        uid = pod["metadata"]["uid"]
        if pod["metadata"].get("deletionTimestamp"):
            if uid + "/end" not in self._known:
                self._known[uid + "/end"] = tasks.create_task(self._end(uid, pod))
        elif uid not in self._known:
            self._known[uid] = tasks.create_task(self._live(pod))

    async def _end(self, uid: str, pod: Object) -> None:
        living = self._known.get(uid)
        if living is not None:
            living.cancel()
        await asyncio.sleep(self.linger)
        meta = pod["metadata"]
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}}
        while True:
            with contextlib.suppress(OSError, httpx2.HTTPError):
                answer = await self.api.raw.request(
                    "DELETE",
                    f"api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}",
                    json=body,
                )
                if answer.status_code in (200, 404, 409):  # 409: another of its name is there.
                    return
            await asyncio.sleep(0.2)

    async def _live(self, pod: Object) -> None:
        image = pod["spec"]["containers"][0]["image"]
        behaviour = image.rpartition("/")[2].partition(":")[0]
        await asyncio.sleep(self.delay)
        if behaviour == "ok":
            self.started.append(pod["metadata"]["name"])
            await self._say(pod, ready=True)
        elif behaviour == "silent":
            await self._say(pod)
        elif behaviour == "missing":
            await self._wait(pod, "ImagePullBackOff", f'failed to pull "{image}": not found')
        elif behaviour == "flaky":
            await self._wait(pod, "ImagePullBackOff", f'failed to pull "{image}": i/o timeout')
        elif behaviour == "broken":
            await self._wait(pod, "RunContainerError", 'exec: "/no": no such file or directory')
        elif behaviour == "crash":
            for count in range(1, 100):
                await self._say(pod, restarts=count, crashed=True)
                await asyncio.sleep(0.1)
        else:
            raise AssertionError(f"no such behaviour: {image}")

    async def _wait(self, pod: Object, reason: str, message: str) -> None:
        await self._status(
            pod, {"waiting": {"reason": reason, "message": message}}, ready=False, phase="Pending"
        )

    async def _say(
        self, pod: Object, *, ready: bool = False, restarts: int = 0, crashed: bool = False
    ) -> None:
        if crashed:
            ended = {"terminated": {"exitCode": 3, "reason": "Error", "startedAt": now(),
                                    "finishedAt": now()}}  # fmt: skip
            waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
            await self._status(pod, waiting, ready=False, restarts=restarts, last=ended)
        else:
            state = {"running": {"startedAt": now()}}
            await self._status(pod, state, ready=ready, restarts=restarts)

    async def _status(
        self,
        pod: Object,
        state: Object,
        *,
        ready: bool,
        restarts: int = 0,
        last: Object | None = None,
        phase: str = "Running",
    ) -> None:
        meta, container = pod["metadata"], pod["spec"]["containers"][0]
        digest = hashlib.sha256(container["image"].encode()).hexdigest()
        value = "True" if ready else "False"
        status = {
            "phase": phase,
            "podIP": "10.244.0.7",
            "podIPs": [{"ip": "10.244.0.7"}],
            "conditions": [
                {"type": kind, "status": "True" if kind == "PodScheduled" else value,
                 "lastTransitionTime": now()}
                for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
            ],
            "containerStatuses": [
                {
                    "name": container["name"],
                    "image": container["image"],
                    "imageID": f"{container['image']}@sha256:{digest}",
                    "ready": ready,
                    "restartCount": restarts,
                    "state": state,
                    "lastState": last or {},
                    "containerID": f"containerd://{meta['uid']}",
                }
            ],
        }  # fmt: skip
        while True:
            try:
                url = f"api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/status"
                await self.patch(url, {"status": status})
                return
            except (OSError, httpx2.HTTPError):  # It is away; we are not.
                await asyncio.sleep(0.2)
