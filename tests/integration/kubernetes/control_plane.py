"""A real Kubernetes control plane for tests: etcd, API server, controllers, scheduler.

The programs are built once by ``scripts/kubernetes/build`` and kept in a cache; etcd is Debian's.
Everything listens on free loopback ports and keeps its data below one folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

ROOT = Path(__file__).resolve().parents[3]

USERS = {
    "admin": ("admin", "system:masters"),
    "controllers": ("system:kube-controller-manager", "system:masters"),
    "scheduler": ("system:kube-scheduler", ""),
}
"""User and group by the name they go by here; their tokens are random."""


@cache
def programs() -> Path:
    """The folder with kube-apiserver and the rest; builds them when they are not there yet."""
    made = subprocess.run(
        [ROOT / "scripts/kubernetes/build"], stdout=subprocess.PIPE, text=True, check=True
    )
    return Path(made.stdout.strip()) / "bin"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class ControlPlane:
    """``url`` is where it answers; :meth:`kubeconfig` makes a file for a user. ``inside`` is put
    before every command, to run it in other namespaces."""

    def __init__(
        self, folder: Path, *, address: str = "127.0.0.1", inside: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        self.inside = list(inside)
        self.address = address
        self.port = free_port()
        self.tokens = {name: secrets.token_hex(16) for name in USERS}
        self.url = f"https://{address}:{self.port}"
        self._etcd = free_port()
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    # -- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        (folder / "accounts.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
        rows = [
            f'{self.tokens[name]},{user},{user},"{group}"' for name, (user, group) in USERS.items()
        ]
        (folder / "tokens.csv").write_text("\n".join(rows) + "\n")
        (folder / "quiet.json").write_text("{}")
        peer = free_port()
        self.run(
            "etcd",
            "/usr/bin/etcd",
            f"--data-dir={folder}/etcd",
            f"--listen-client-urls=http://127.0.0.1:{self._etcd}",
            f"--advertise-client-urls=http://127.0.0.1:{self._etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            "--log-level=error",
        )
        self.start_api()
        self.wait_ready()
        self.start_controllers()

    def start_controllers(self) -> None:
        folder = self.folder
        for name, token in (("controller-manager", "controllers"), ("scheduler", "scheduler")):
            options = [
                f"--kubeconfig={self.kubeconfig(token)}",
                "--leader-elect=false",
                f"--secure-port={free_port()}",
                "--bind-address=127.0.0.1",
                f"--cert-dir={folder}/{name}",
                "--kube-api-qps=500",
                "--kube-api-burst=1000",
            ]
            if name == "controller-manager":
                options += [
                    "--use-service-account-credentials=false",
                    f"--service-account-private-key-file={folder}/accounts.key",
                    f"--root-ca-file={folder}/api/apiserver.crt",
                    "--node-monitor-grace-period=24h",
                    "--node-monitor-period=60s",
                    "--concurrent-deployment-syncs=20",
                    "--concurrent-namespace-syncs=30",
                ]
            self.run(name, str(programs() / f"kube-{name}"), *options)

    def start_api(self) -> None:
        folder = self.folder
        self.run(
            "apiserver",
            str(programs() / "kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{self._etcd}",
            f"--secure-port={self.port}",
            f"--bind-address={self.address}",
            f"--advertise-address={self.address if self.address != '127.0.0.1' else '192.0.2.1'}",
            f"--cert-dir={folder}/api",
            f"--token-auth-file={folder}/tokens.csv",
            "--authorization-mode=RBAC",
            "--anonymous-auth=true",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={folder}/accounts.key",
            f"--service-account-key-file={folder}/accounts.key",
            "--service-cluster-ip-range=10.96.0.0/16",
            # Nodes take pods at once, instead of when a controller has come to look at them.
            "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
            "--kubelet-preferred-address-types=InternalIP",
            "--allow-privileged=true",
            "--watch-cache-sizes=pods#1000",
            "--shutdown-delay-duration=0s",
        )

    def stop(self) -> None:
        for name in reversed(list(self._running)):
            self.kill(name)

    def run(self, name: str, *command: str, **options: Any) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as output:
            found = subprocess.Popen(
                [*self.inside, *command], stdout=output, stderr=output, **options
            )
        self._running[name] = found
        return found

    def kill(self, name: str, how: int = signal.SIGKILL) -> None:
        found = self._running.pop(name, None)
        if found is not None:
            found.send_signal(how)
            if how == signal.SIGKILL:
                found.wait(10)

    def freeze(self, name: str) -> None:
        """The process stays, and says nothing any more."""
        self._running[name].send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        self._running[name].send_signal(signal.SIGCONT)

    def restart_api(self) -> None:
        """With new controllers: the old ones would wait up to half a minute before they ask it
        again, each for every kind of object."""
        for name in ("controller-manager", "scheduler"):
            self.kill(name)
        self.start_api()
        self.wait_ready()
        self.start_controllers()

    def wait_ready(self, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while True:
            found = self._running["apiserver"]
            if found.poll() is not None:
                raise AssertionError((self.folder / "apiserver.log").read_text()[-3000:])
            with contextlib.suppress(urllib.error.URLError, OSError):
                if self.ask("/readyz") == b"ok":
                    return
            if time.monotonic() > deadline:
                raise AssertionError("the API server did not become ready")
            time.sleep(0.1)

    # -- use --------------------------------------------------------------------------------------

    def ask(self, path: str, *, data: Any = None, token: str = "admin", method: str = "") -> bytes:
        """The answer to a request of a user."""
        context = ssl._create_unverified_context()
        token = self.tokens.get(token, token)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        body = json.dumps(data).encode() if data is not None else None
        request = urllib.request.Request(
            self.url + path, data=body, headers=headers, method=method or None
        )
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return bytes(answer.read())

    def kubeconfig(self, token: str) -> Path:
        """A file that reaches it with ``token``, or as the user of that name."""
        token = self.tokens.get(token, token)
        path = self.folder / f"{hashlib.sha256(token.encode()).hexdigest()[:12]}.kubeconfig"
        made = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [
                {
                    "name": "test",
                    "cluster": {
                        "server": self.url,
                        "certificate-authority": str(self.folder / "api/apiserver.crt"),
                    },
                }
            ],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }
        path.write_text(json.dumps(made))
        return path

    def account(self, namespace: str, name: str) -> str:
        """A token of a service account."""
        asked = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {}}
        url = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        return str(json.loads(self.ask(url, data=asked))["status"]["token"])

    def memory(self) -> dict[str, int]:
        """Resident bytes of each program."""
        return {
            name: int(Path(f"/proc/{p.pid}/statm").read_text().split()[1])
            * os.sysconf("SC_PAGESIZE")
            for name, p in self._running.items()
        }


@contextlib.contextmanager
def control_plane(folder: Path, **options: Any) -> Iterator[ControlPlane]:
    made = ControlPlane(folder, **options)
    try:
        made.start()
        yield made
    finally:
        made.stop()
