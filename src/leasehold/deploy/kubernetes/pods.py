"""Reading pods and controllers: is it up, and if not, why not.

Pure functions over objects as the API server gives them.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass

from leasehold.core.errors import Kind, LeaseholdError
from leasehold.deploy.kubernetes.api import Object
from leasehold.deploy.kubernetes.cache import labels
from leasehold.deploy.kubernetes.render import PREFIX

PULLING = {"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable"}
NEVER_PULLED = {"InvalidImageName", "ErrImageNeverPull"}
CANNOT_START = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}

REFUSED = ("not found", "unauthorized", "denied", "forbidden", "manifest unknown")
"""Words of a registry's answer after which asking again cannot help."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container ended: ``count`` is which of its pod's it was."""

    pod: str
    count: int
    status: int | None
    reason: str
    former: bool = False
    """Another runs in its place already."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a pod does not come up. ``lasting``: waiting cannot help."""

    code: str
    message: str
    lasting: bool = False

    def error(self, service: str) -> LeaseholdError:
        return LeaseholdError(
            self.code,
            f"{service}: {self.message}",
            kind=Kind.INVALID if self.lasting else Kind.UNAVAILABLE,
            path=f"services.{service}",
        )


def of_service(pods: Iterable[Object], service: str, revision: str = "") -> list[Object]:
    """The pods of a service (and revision) that are not on their way out, oldest first."""
    found = [
        pod
        for pod in pods
        if labels(pod).get(f"{PREFIX}service") == service
        and revision in ("", labels(pod).get(f"{PREFIX}revision"))
        and not pod["metadata"].get("deletionTimestamp")
        and pod.get("status", {}).get("phase") not in ("Failed", "Succeeded")
    ]
    found.sort(key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))
    return found


def container(pod: Object) -> Object:
    """The status of its one container; empty before it has one."""
    found = pod.get("status", {}).get("containerStatuses") or [{}]
    return dict(found[0])


def ready(pod: Object) -> bool:
    return any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in pod.get("status", {}).get("conditions") or ()
    )


def running(pod: Object) -> bool:
    return "running" in (container(pod).get("state") or {})


def digest(pod: Object) -> str:
    """Of the image it runs, like ``sha256:...``; empty before that is known."""
    found = str(container(pod).get("imageID", "")).rpartition("@")[2]
    return found if found.startswith("sha256:") else ""


def started_at(pod: Object) -> float:
    state = container(pod).get("state") or {}
    text = (state.get("running") or {}).get("startedAt") or pod["metadata"]["creationTimestamp"]
    return datetime.datetime.fromisoformat(text).timestamp()


def exits(pod: Object) -> list[Exit]:
    """The ends of its container that can still be seen, at most the last two."""
    status = container(pod)
    count = int(status.get("restartCount", 0))
    found = []
    seen = ((count - 1, status.get("lastState"), True), (count, status.get("state"), False))
    for number, state, former in seen:
        ended = (state or {}).get("terminated")
        if not ended or number < 0:
            continue
        code, signal = ended.get("exitCode"), ended.get("signal")
        wait = signal if signal else None if code is None else code << 8
        reason = ended.get("reason") or "ended"
        text = f"{reason}, exit code {code}" if code is not None else str(reason)
        if ended.get("message"):
            text += f": {ended['message'].strip()[:200]}"
        found.append(Exit(pod["metadata"]["name"], number, wait, text, former))
    return found


def trouble(pod: Object, most_restarts: int) -> Trouble | None:
    """Why it does not come up, if that can be told."""
    for condition in pod.get("status", {}).get("conditions") or ():
        if (
            condition["type"] == "PodScheduled"
            and condition["status"] == "False"
            and condition.get("reason") == "Unschedulable"
        ):
            return Trouble("no_room", f"no node has room for it: {condition.get('message', '')}")
    status = container(pod)
    waiting = (status.get("state") or {}).get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message", "").strip()
    if reason in PULLING or reason in NEVER_PULLED:
        refused = reason in NEVER_PULLED or any(word in message.lower() for word in REFUSED)
        text = f"its image {status.get('image', '')} cannot be pulled: {message or reason}"
        return Trouble("image_pull_failed", text, refused)
    if reason in CANNOT_START:
        return Trouble("cannot_start", f"it cannot be started: {message or reason}", True)
    if int(status.get("restartCount", 0)) >= most_restarts or reason == "CrashLoopBackOff":
        last = exits(pod)
        how = last[-1].reason if last else "an unknown end"
        lasting = int(status.get("restartCount", 0)) >= most_restarts
        text = f"it ended {status.get('restartCount', 0)} times, the last time with {how}"
        return Trouble("keeps_ending", text + "; see its log", lasting)
    return None


def refused(controller: Object) -> Trouble | None:
    """Why its controller may not even make pods."""
    for condition in controller.get("status", {}).get("conditions") or ():
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return Trouble("pods_refused", f"the cluster refuses it: {condition.get('message')}")
    return None


def lacks_claim(pod: Object, controller: Object) -> bool:
    """Whether the set of a replica has a claim that the replica was made without."""
    claims = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["spec"].get("volumes") or ()
        if "persistentVolumeClaim" in volume
    }
    wanted = [t["metadata"]["name"] for t in controller["spec"].get("volumeClaimTemplates") or ()]
    return any(claims.get(name) != f"{name}-{pod['metadata']['name']}" for name in wanted)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a controller is with what it was last told."""

    wanted: int
    available: int
    updated: int
    settled: bool
    """Nothing older is left, and everything new is available."""


def progress(controller: Object | None, generation: int) -> Progress:
    """``generation``: of the spec that was applied; an older status says nothing of it."""
    if controller is None:
        return Progress(0, 0, 0, False)
    spec, status = controller["spec"], controller.get("status") or {}
    wanted = int(spec.get("replicas", 1))
    available = int(status.get("availableReplicas", 0))
    updated = int(status.get("updatedReplicas", 0))
    seen = int(status.get("observedGeneration", 0)) >= max(
        generation, int(controller["metadata"].get("generation", 0))
    )
    settled = seen and updated == wanted == available == int(status.get("replicas", 0))
    if controller["kind"] == "StatefulSet":
        # Its status counts updated replicas only while an update goes on.
        same = status.get("currentRevision") == status.get("updateRevision")
        settled = seen and same and available == wanted == int(status.get("replicas", 0))
    return Progress(wanted, available, updated, settled)
