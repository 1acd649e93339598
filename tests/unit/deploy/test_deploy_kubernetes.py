"""The objects of a workload on Kubernetes."""

from __future__ import annotations

import base64
import json
from typing import Any

from leasehold.deploy.kubernetes.render import key, render
from leasehold.deploy.kubernetes.settings import KubernetesSettings
from leasehold.deploy.settings import DeploySettings
from leasehold.deploy.workload import Workload
from leasehold.model.market import LeaseId

LEASE = LeaseId("akash1owner", 100, 1, 1, "akash1provider")
NAMESPACE = "pmkaom7p6tdd85j5m3oq4pipvc8g52uf0733jarld89q6"


def service(**more: Any) -> dict[str, Any]:
    return {
        "name": "web",
        "image": "nginx:1",
        "count": 2,
        "env": ["A=b", "AKASH_OWNER=mine"],
        "resources": {
            "id": 1,
            "cpu": {"units": {"val": "500"}},
            "memory": {"size": {"val": "1048576"}},
            "storage": [{"name": "default", "size": {"val": "5242880"}}],
            "gpu": {"units": {"val": "0"}},
        },
        "expose": [
            {"port": 8080, "externalPort": 80, "proto": "TCP", "global": True,
             "hosts": ["a.test"], "httpOptions": {"maxBodySize": 9, "readTimeout": 1500,
                                                  "nextCases": ["error", "502"]}},
            {"port": 9000, "proto": "TCP"},
            {"port": 53, "proto": "UDP", "global": True},
        ],
        **more,
    }  # fmt: skip


def objects(*services: dict[str, Any], **settings: Any) -> dict[tuple[str, str], dict[str, Any]]:
    workload = Workload.of(LEASE, "h1", {"name": "g", "services": list(services)})
    made = render(workload, DeploySettings(kubernetes=KubernetesSettings(**settings)))
    json.dumps(made)
    keys = [key(found) for found in made]
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, made, strict=True))


def test_a_service_without_volumes_is_a_deployment() -> None:
    made = objects(service())
    assert set(made) == {
        ("Namespace", NAMESPACE),
        ("NetworkPolicy", "default"),
        ("NetworkPolicy", "web-np"),
        ("Deployment", "web"),
        ("Service", "web"),
        ("Service", "web-np"),
        ("Ingress", "web-8080"),
    }
    spec = made["Deployment", "web"]["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    pod = spec["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["runtimeClassName"] == "gvisor"
    container = pod["containers"][0]
    assert container["securityContext"]["privileged"] is False
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert container["resources"]["limits"]["cpu"] == "500m"
    env = {e["name"]: e["value"] for e in container["env"]}
    assert (env["A"], env["AKASH_OWNER"], env["AKASH_DEPLOYMENT_SEQUENCE"]) == ("b", "mine", "100")
    assert all(
        o["metadata"]["annotations"]["leasehold.dev/manifest"] == "h1" for o in made.values()
    )


def test_ways_in() -> None:
    made = objects(service())
    inside = made["Service", "web"]["spec"]
    ports = [(p["port"], p["targetPort"]) for p in inside["ports"]]
    assert ports == [(80, "tcp-80"), (9000, "tcp-9000")]
    container = made["Deployment", "web"]["spec"]["template"]["spec"]["containers"][0]
    named = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert named == {"tcp-80": 8080, "tcp-9000": 9000, "udp-53": 53}
    outside = made["Service", "web-np"]["spec"]
    assert outside["type"] == "NodePort"
    assert [(p["port"], p["protocol"]) for p in outside["ports"]] == [(53, "UDP")]
    ingress = made["Ingress", "web-8080"]
    backend = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": "web", "port": {"number": 80}}
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == "9"
    assert annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "2"
    assert annotations["nginx.ingress.kubernetes.io/proxy-next-upstream"] == "error http_502"


def test_a_persistent_volume_makes_a_stateful_set() -> None:
    storage = [
        {"name": "default", "size": {"val": "5242880"}},
        {"name": "data", "size": {"val": "99"}, "attributes": [
            {"key": "persistent", "value": "true"}, {"key": "class", "value": "beta3"}]},
        {"name": "tmp", "size": {"val": "88"}, "attributes": [{"key": "class", "value": "ram"}]},
    ]  # fmt: skip
    resources = {**service()["resources"], "storage": storage}
    params = {"storage": [{"name": "data", "mount": "/data"}, {"name": "tmp", "mount": "/tmp/x"}]}
    made = objects(
        service(resources=resources, params=params), storage_classes={"beta3": "fast-ssd"}
    )
    spec = made["StatefulSet", "web"]["spec"]
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == "fast-ssd"
    assert claim["spec"]["resources"]["requests"]["storage"] == "99"
    (volume,) = spec["template"]["spec"]["volumes"]
    assert volume["emptyDir"] == {"sizeLimit": "88", "medium": "Memory"}
    mounts = spec["template"]["spec"]["containers"][0]["volumeMounts"]
    assert [m["mountPath"] for m in mounts] == ["/data", "/tmp/x"]


def test_leases_are_kept_apart() -> None:
    policy = objects(service())["NetworkPolicy", "default"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    *_, public = policy["egress"]
    assert "10.0.0.0/8" in public["to"][0]["ipBlock"]["except"]
    assert "169.254.0.0/16" in public["to"][0]["ipBlock"]["except"]
    assert ("NetworkPolicy", "default") not in objects(service(), network_policies=False)


def test_private_images_have_a_pull_secret() -> None:
    credentials = {"host": "r.test", "username": "u", "password": "p", "email": ""}
    made = objects(service(credentials=credentials))
    data = made["Secret", "web-pull"]["data"][".dockerconfigjson"]
    auth = json.loads(base64.b64decode(data))["auths"]["r.test"]
    assert base64.b64decode(auth["auth"]) == b"u:p"
    pod = made["Deployment", "web"]["spec"]["template"]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "web-pull"}]


def test_a_full_cluster_replaces_one_at_a_time() -> None:
    made = objects(service(), surge=False, runtime_class="")
    spec = made["Deployment", "web"]["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert "runtimeClassName" not in spec["template"]["spec"]


def test_rendering_again_gives_the_same() -> None:
    assert objects(service()) == objects(service())
