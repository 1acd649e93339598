"""The Helm chart: installed, upgraded and removed on a real API server; what its pods are told is
understood; its rights are enough and no more than that.

Its pods are played. That the image's recipe has all it needs is tried without a container.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from conftest_kubernetes import Place, eventually, group, service
from control_plane import ROOT, programs

from leasehold.app.settings import Settings
from leasehold.cli.frame import run
from leasehold.core.settings import load
from leasehold.deploy.kubernetes.doctor import RIGHTS, examine

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(120)]

CHART = ROOT / "deploy/helm/leasehold"

ALL = (
    "--set", "images.enabled=true,provider.tlsSecret=tls,provider.storage.className=by-hand",
    "--set", "index.enabled=true,index.secret=index,index.settings.index.slice=30",
    "--set", "index.workers[0].name=hub,index.workers[0].chainId=hub-4",
    "--set", "index.workers[0].rpc=https://node.example:443",
)  # fmt: skip
"""Every part of it."""

PLURALS = {
    "ConfigMap": "api/v1/namespaces/{}/configmaps",
    "PersistentVolumeClaim": "api/v1/namespaces/{}/persistentvolumeclaims",
    "ServiceAccount": "api/v1/namespaces/{}/serviceaccounts",
    "Service": "api/v1/namespaces/{}/services",
    "Deployment": "apis/apps/v1/namespaces/{}/deployments",
    "StatefulSet": "apis/apps/v1/namespaces/{}/statefulsets",
    "DaemonSet": "apis/apps/v1/namespaces/{}/daemonsets",
    "Role": "apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "RoleBinding": "apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
    "ClusterRole": "apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "ValidatingAdmissionPolicy":
        "apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding":
        "apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
}  # fmt: skip


def helm(*words: str) -> str:
    done = subprocess.run([programs() / "helm", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def rendered(*options: str, namespace: str = "market") -> list[dict[str, Any]]:
    text = helm(
        "template", "lh", str(CHART), "--kube-version", "1.34.0", "--namespace", namespace, *options
    )
    return [item for item in yaml.safe_load_all(text) if item]


async def put(place: Place, found: dict[str, Any], namespace: str, *, dry: bool = False) -> None:
    url = f"{PLURALS[found['kind']].format(namespace)}/{found['metadata']['name']}"
    params = {"fieldManager": "helm", "force": "true", "fieldValidation": "Strict"}
    answer = await place.api.raw.patch(
        url,
        json=found,
        params={**params, **({"dryRun": "All"} if dry else {})},
        headers={"Content-Type": "application/apply-patch+yaml"},
    )
    assert answer.status_code in (200, 201), answer.text


async def make_namespace(place: Place, name: str) -> None:
    await place.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})


@pytest.mark.parametrize(
    "options",
    [(), ALL, (*ALL, "--set", "provider.enabled=false,images.enabled=false")],
    ids=["provider", "all", "index"],
)
async def test_the_chart_is_accepted_by_the_api_server(
    cluster: Place, options: tuple[str, ...]
) -> None:
    assert "0 chart(s) failed" in helm("lint", str(CHART), "--strict", *options)
    await make_namespace(cluster, "market")
    found = rendered(*options)
    assert ("DaemonSet" in {item["kind"] for item in found}) == (options == ALL)
    for item in found:
        await put(cluster, item, "market", dry=True)


async def test_it_is_installed_upgraded_and_removed(cluster: Place) -> None:
    namespace = f"lh-{cluster.address[-6:]}"
    spec = {
        "capacity": {"storage": "10Gi"},
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "by-hand",
        "hostPath": {"path": f"/tmp/{namespace}"},
    }
    volume = {"metadata": {"name": namespace}, "spec": spec}
    (await cluster.api.raw.post("api/v1/persistentvolumes", json=volume)).raise_for_status()

    async def do(*words: str) -> None:
        kubeconfig = str(cluster.plane.kubeconfig("admin"))
        await asyncio.to_thread(
            helm, *words, "--kubeconfig", kubeconfig, "--namespace", namespace,
            "--wait", "--timeout", "50s",
        )  # fmt: skip

    async def pods() -> dict[str, str]:
        """Part by name."""
        found, _ = await cluster.api.list("Pod", namespace)
        return {
            pod["metadata"]["name"]: pod["metadata"]["labels"]["app.kubernetes.io/name"]
            for pod in found
            if not pod["metadata"].get("deletionTimestamp")
        }

    try:
        played = ("--set", "image.repository=ok,image.tag=1")
        await do("install", "lh", str(CHART), "--create-namespace", *ALL, *played)
        before = await pods()
        assert sorted(before.values()) == [
            "leasehold", "leasehold-images", *["leasehold-index"] * 6,
        ]  # fmt: skip
        assert {"lh-manager-0", "lh-manager-1"} <= set(before)
        # Every service leads somewhere.
        url = f"apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        slices = (await cluster.api.raw.get(url)).json()["items"]
        leads = {s["metadata"]["labels"]["kubernetes.io/service-name"] for s in slices
                 if s.get("endpoints")}  # fmt: skip
        assert leads == {"lh", "lh-index", "lh-manager", "lh-scheduler"}

        # Other settings of the index: the index starts anew, nothing else does.
        slower = ("--set", "index.settings.index.slice=20")
        await do("upgrade", "lh", str(CHART), *ALL, *played, *slower)
        after = await pods()
        kept = {name for name, part in before.items() if part != "leasehold-index"}
        assert kept < set(after)
        assert set(before) & set(after) == {*kept, "lh-manager-0", "lh-manager-1"}

        await do("uninstall", "lh")
        url = f"api/v1/namespaces/{namespace}/persistentvolumeclaims"
        claims = (await cluster.api.raw.get(url)).json()["items"]
        assert [claim["metadata"]["name"] for claim in claims] == ["lh"], "the provider's keys"
    finally:
        await cluster.api.delete("Namespace", namespace)
        await cluster.api.raw.delete(f"api/v1/persistentvolumes/{namespace}")


def test_its_pods_are_told_what_they_understand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each role of the index is started as its pod would start it, up to where it would serve."""
    roles: list[tuple[str, Settings]] = []
    monkeypatch.setattr(
        "leasehold.app.roles.serve", lambda r, s: roles.append((type(r).__name__, s))
    )
    for item in rendered(*ALL):
        if item["metadata"]["labels"].get("app.kubernetes.io/name") != "leasehold-index":
            continue
        spec = item["spec"]["template"]["spec"]
        assert spec["automountServiceAccountToken"] is False
        (container,) = spec["containers"]
        (settings,) = (i for i in rendered(*ALL) if i["metadata"]["name"] == "lh-index"
                       and i["kind"] == "ConfigMap")  # fmt: skip
        file = tmp_path / "leasehold.toml"
        file.write_text(settings["data"]["leasehold.toml"])
        secrets = {"index": "postgresql+asyncpg://db/index", "token": "t", "user": "u",
                   "schedule": "postgresql+asyncpg://db/schedule", "password": "p"}  # fmt: skip
        given = {"status.podIP": "10.1.2.3", **secrets}
        with monkeypatch.context() as environ:
            for entry in container["env"]:
                source = entry.get("valueFrom", {})
                asked = source.get("secretKeyRef", {}).get("key") or source.get("fieldRef", {}).get(
                    "fieldPath"
                )
                environ.setenv(entry["name"], given[asked] if asked else entry["value"])
            args = [
                a.replace("$(POD_IP)", "10.1.2.3")
                .replace("=/state", f"={tmp_path}")
                .replace("=/settings/leasehold.toml", f"={file}")
                for a in container["args"]
            ]
            assert run(args) == 0
    found = dict(roles)
    assert set(found) == {"ManagerRole", "WorkerRole", "SchedulerRole"}
    manager, worker = found["ManagerRole"], found["WorkerRole"]
    managers = ("lh-manager-0.lh-manager:8085", "lh-manager-1.lh-manager:8085")
    assert (manager.dispatch.manager_host, manager.dispatch.token) == ("0.0.0.0", "t")
    assert manager.index.store == "postgresql+asyncpg://db/index"
    assert manager.index.slice == 30
    assert "10.0.0.0/8" in manager.dispatch.dial_allow
    assert worker.dispatch.worker_address == "10.1.2.3:29300"
    assert (worker.index.network, worker.index.chain_id) == ("cosmos", "hub-4")
    assert worker.dispatch.managers == found["SchedulerRole"].schedule.managers == managers
    assert found["SchedulerRole"].schedule.auth_password == "p"
    assert {s.ops.host for s in found.values()} == {"0.0.0.0"}


def test_the_image_s_recipe_copies_what_it_builds(tmp_path: Path) -> None:
    """Its COPY lines in an empty folder, then the wheel it installs."""
    recipe = (ROOT / "deploy/Dockerfile").read_text()
    for line in recipe.splitlines():
        word, *names = line.split()
        if word == "COPY":
            for name in names[:-1]:
                target = tmp_path / names[-1] / (Path(name).name if names[-1] == "./" else "")
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, target, dirs_exist_ok=True)
                else:
                    shutil.copy(ROOT / name, target)
    assert (tmp_path / "traces.txt").exists()
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "made",
         tmp_path],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = (tmp_path / "made").glob("*.whl")
    assert {"leasehold/cli/__init__.py", "leasehold/app/demo/hello.yaml"} <= set(
        zipfile.ZipFile(wheel).namelist()
    )


def test_its_settings_are_settings(tmp_path: Path) -> None:
    for item in rendered("--set", "images.enabled=true,provider.tlsSecret=tls"):
        if item["kind"] == "ConfigMap":
            text = item["data"]["leasehold.toml"]
            tomllib.loads(text)
            file = tmp_path / f"{item['metadata']['name']}.toml"
            file.write_text(text)
            settings = load(Settings, file=file, environ={}).values
            if item["metadata"]["name"] == "lh":
                assert settings.deploy.driver == "kubernetes"
                assert settings.deploy.kubernetes.ingress_class == "nginx"
                assert settings.gateway.host == "0.0.0.0"
    (daemons,) = (i for i in rendered("--set", "images.enabled=true") if i["kind"] == "DaemonSet")
    (container,) = daemons["spec"]["template"]["spec"]["containers"]
    environ = {e["name"]: e.get("value", "pod-1") for e in container["env"]}
    settings = load(
        Settings, environ={k: v for k, v in environ.items() if k.startswith("LEASEHOLD_")}
    ).values
    assert settings.images.kubernetes_pod == "pod-1"


def test_its_role_is_what_the_driver_does() -> None:
    (role,) = (
        item
        for item in rendered()
        if item["kind"] == "ClusterRole"  # The provider's alone: images are off.
    )
    granted = {
        (group, resource): tuple(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert granted == RIGHTS


async def test_doctor_says_what_the_account_may_not_do(cluster: Place) -> None:
    checks = {check.name: check for check in await examine(cluster.settings())}
    assert {name: check.level for name, check in checks.items()} == {
        "cluster": "ok", "rights": "ok", "nodes": "ok",
    }  # fmt: skip
    assert "Kubernetes 1.34" in checks["cluster"].detail
    checks = {check.name: check for check in await examine(cluster.settings(token="scheduler"))}
    assert checks["rights"].level == "error"
    assert "create namespaces" in checks["rights"].detail


async def test_its_rights_are_enough_and_no_more(cluster: Place) -> None:
    namespace = f"lh-{cluster.address[-6:]}"
    await make_namespace(cluster, namespace)
    for item in rendered(namespace=namespace):
        if item["kind"] not in ("Deployment", "PersistentVolumeClaim", "ConfigMap"):
            await put(cluster, item, namespace)
    token = cluster.plane.account(namespace, "lh")
    try:
        await _enough(cluster, token)
        await _no_more(cluster, token, namespace)
    finally:
        for item in rendered(namespace=namespace):
            if not item["metadata"].get("namespace") and item["kind"] in PLURALS:
                url = f"{PLURALS[item['kind']].format(namespace)}/{item['metadata']['name']}"
                await cluster.api.raw.delete(url)


async def _enough(cluster: Place, token: str) -> None:
    """A whole life of a lease: deployed, updated, repaired, read, removed."""
    async with cluster.provider(token=token) as provider:
        secret = {"host": "r.test", "username": "u", "password": "p"}
        await provider.up(group(service(credentials=secret), service("db", hosts=("db.test",))))
        await provider.up(group(service(image="ok:2")), "h2")
        await provider.put(group(service(image="missing:3")), "h3")
        await provider.until("deploy.failed", "h3")
        await cluster.api.delete("Ingress", "web-8080", provider.namespace)
        await eventually(lambda: cluster.api.get("Ingress", "web-8080", provider.namespace))
        await eventually(lambda: provider.deploy.inventory.nodes)
        assert await provider.deploy.driver.last_warning(provider.namespace) is not None
        await provider.close()
        await provider.until("deploy.removed")


async def _no_more(cluster: Place, token: str, namespace: str) -> None:
    """What a provider somebody else has taken over cannot do."""
    headers = {"Authorization": f"Bearer {token}"}
    secret = {"metadata": {"name": "theirs"}, "stringData": {"a": "b"}}
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "ok:1"}]}}
    deployment = {
        "metadata": {"name": "d", "labels": {"app.kubernetes.io/managed-by": "leasehold"}},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod["spec"]},
        },
    }
    async with httpx2.AsyncClient(
        base_url=cluster.plane.url, headers=headers, verify=False, trust_env=False
    ) as client:

        async def refused(method: str, url: str, **how: Any) -> None:
            answer = await client.request(method, url, **how)
            assert answer.status_code in (403, 422), (method, url, answer.status_code, answer.text)

        await refused("GET", "/api/v1/secrets")
        await refused("GET", f"/api/v1/namespaces/{namespace}/configmaps")
        await refused("POST", f"/api/v1/namespaces/{namespace}/secrets", json=secret)
        await refused("POST", "/api/v1/namespaces/kube-system/pods", json=pod)
        await refused("POST", "/apis/apps/v1/namespaces/kube-system/deployments", json=deployment)
        await refused("DELETE", "/api/v1/namespaces/kube-system")
        await refused("DELETE", f"/api/v1/namespaces/{namespace}")
        await refused("POST", "/api/v1/namespaces", json={"metadata": {"name": "other"}})
        # Nor make somebody else's namespace its own.
        await refused(
            "PATCH",
            f"/api/v1/namespaces/{namespace}",
            json={"metadata": {"labels": {"app.kubernetes.io/managed-by": "leasehold"}}},
            headers={**headers, "Content-Type": "application/merge-patch+json"},
        )
        await refused(
            "POST",
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            json={
                "metadata": {"name": "mine"},
                "roleRef": {"kind": "ClusterRole", "name": "cluster-admin", "apiGroup": ""},
            },
        )
