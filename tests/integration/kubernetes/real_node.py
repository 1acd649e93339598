"""A node with a real kubelet and containerd, in network and mount namespaces of its own.

The control plane runs in there as well; the host reaches both over one link, and gets everything
back when the namespaces go: no rule, route, mount or sysctl of the host is touched. Images are made
here (a static busybox) and put into containerd; nothing is pulled.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from control_plane import ControlPlane, programs

HOST, INSIDE, PODS = "198.18.7.1", "198.18.7.2", "198.18.8.0/24"

SYSCTLS = {
    "vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10",
    "kernel/panic_on_oops": "1", "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}  # fmt: skip
"""What the kubelet would write: it gets files of its own instead."""

CONTAINERD = """
version = 2
root = "{folder}/containerd"
state = "{state}/containerd"
[grpc]
  address = "{state}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
"""


class RealNode:
    """``plane`` is its control plane."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = f"lhk{secrets.token_hex(3)}"
        self.state = Path("/run") / self.id
        self.cgroup = f"/{self.id}"
        self._holder: subprocess.Popen[bytes] | None = None
        self.plane: ControlPlane

    # -- namespaces -------------------------------------------------------------------------------

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.state.mkdir()
        self._holder = subprocess.Popen(
            ["unshare", "-n", "-m", "--propagation", "private", "sleep", "infinity"]
        )
        self.inside = ["nsenter", "-t", str(self._holder.pid), "-n", "-m"]
        mine = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self._holder.pid}/ns/net") == mine:
            time.sleep(0.01)
        self._link(self._holder.pid)
        for name, value in SYSCTLS.items():
            file = self.folder / name.replace("/", ".")
            file.write_text(value)
            self.do("mount", "--bind", str(file), f"/proc/sys/{name}")
        self._cgroups()
        self.plane = ControlPlane(self.folder / "plane", address=INSIDE, inside=self.inside)
        self.plane.start()
        self._containerd()
        self._kubelet()

    def do(self, *command: str) -> str:
        done = subprocess.run([*self.inside, *command], capture_output=True, text=True)
        if done.returncode:
            raise AssertionError(f"{command}: {done.stderr}")
        return done.stdout

    def _link(self, pid: int) -> None:
        def ip(*words: str) -> None:
            subprocess.run(["ip", *words], check=True)

        ip("link", "add", self.id, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        ip("addr", "add", f"{HOST}/30", "dev", self.id)
        ip("link", "set", self.id, "up")
        self.do("ip", "link", "set", "lo", "up")
        self.do("ip", "addr", "add", f"{INSIDE}/30", "dev", "eth0")
        self.do("ip", "link", "set", "eth0", "up")
        self.do("ip", "route", "add", "default", "via", HOST)
        self.do("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        ip("route", "add", PODS, "via", INSIDE)

    def _cgroups(self) -> None:
        for controller in Path("/sys/fs/cgroup").iterdir():
            if controller.is_dir() and (controller / "cgroup.procs").exists():
                with contextlib.suppress(OSError):
                    (controller / self.id).mkdir(exist_ok=True)
        cpuset = Path("/sys/fs/cgroup/cpuset")
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (cpuset / name).exists():
                (cpuset / self.id / name).write_text((cpuset / name).read_text())

    # -- containers -------------------------------------------------------------------------------

    def _containerd(self) -> None:
        cni = self.folder / "cni"
        cni.mkdir()
        (cni / "10-bridge.conflist").write_text(
            json.dumps(
                {
                    "cniVersion": "0.4.0",
                    "name": "pods",
                    "plugins": [
                        {
                            "type": "bridge",
                            "bridge": "cni0",
                            "isGateway": True,
                            "ipam": {
                                "type": "host-local",
                                "subnet": PODS,
                                "routes": [{"dst": "0.0.0.0/0"}],
                                "dataDir": str(self.folder / "ipam"),
                            },
                        }
                    ],
                }
            )
        )
        config = self.folder / "containerd.toml"
        config.write_text(CONTAINERD.format(folder=self.folder, state=self.state))
        self.plane.run("containerd", "/usr/bin/containerd", "--config", str(config))
        deadline = time.monotonic() + 20
        while not (self.state / "containerd.sock").exists():
            if time.monotonic() > deadline:
                raise AssertionError((self.plane.folder / "containerd.log").read_text()[-2000:])
            time.sleep(0.05)
        self.image("localhost/pause:1", ["/bin/sleep", "2147483647"])

    def image(self, name: str, command: list[str]) -> None:
        """Put an image with busybox into containerd."""
        file = self.folder / "image.tar"
        write_image(file, name, command)
        self.do(
            "ctr", "-a", str(self.state / "containerd.sock"), "-n", "k8s.io", "images", "import",
            "--no-unpack", str(file),
        )  # fmt: skip

    def _kubelet(self) -> None:
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": "0.0.0.0",
            "port": 10250,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.cgroup,
            "containerRuntimeEndpoint": f"unix://{self.state}/containerd.sock",
            "enforceNodeAllocatable": [],
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%",
                             "imagefs.available": "0%", "nodefs.inodesFree": "0%",
                             "imagefs.inodesFree": "0%"},
            "failCgroupV1": False,
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "maxOpenFiles": 20000,
            "oomScoreAdj": 0,
            "registerNode": True,
            "volumePluginDir": str(self.folder / "plugins"),
            "podLogsDir": str(self.folder / "pod-logs"),
            "resolvConf": "",
            "syncFrequency": "10s",
            "serializeImagePulls": False,
        }  # fmt: skip
        path = self.folder / "kubelet.json"
        path.write_text(json.dumps(config))
        self.plane.run(
            "kubelet",
            str(programs() / "kubelet"),
            f"--config={path}",
            f"--kubeconfig={self.plane.kubeconfig('admin')}",
            f"--root-dir={self.folder}/kubelet",
            f"--cert-dir={self.folder}/kubelet-certs",
            f"--node-ip={INSIDE}",
            "--hostname-override=real",
        )

    # -- the end ----------------------------------------------------------------------------------

    def stop(self) -> None:
        if hasattr(self, "plane"):
            self.plane.kill("kubelet")
            self._end_containers()
            self.plane.stop()
        if self._holder is not None:
            self._end_processes(f"/proc/{self._holder.pid}/ns/mnt")
            self._holder.wait()
        subprocess.run(["ip", "link", "del", self.id], capture_output=True)
        shutil.rmtree(self.state, ignore_errors=True)
        self._remove_cgroups()

    def _end_containers(self) -> None:
        """Everything in the node's control groups."""
        for _ in range(100):
            found: list[int] = []
            for top in Path("/sys/fs/cgroup").glob(f"*/{self.id}"):
                for folder, _, _ in os.walk(top):
                    with contextlib.suppress(OSError):  # It ends while we look.
                        found += map(int, (Path(folder) / "cgroup.procs").read_text().split())
            if not found:
                return
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            time.sleep(0.05)

    def _end_processes(self, namespace: str) -> None:
        """Everything in our mount namespace: the shims of containers outlive all else."""
        mine = os.readlink(namespace)
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(process / "ns/mnt") == mine:
                    os.kill(int(process.name), 9)

    def _remove_cgroups(self) -> None:
        for top in Path("/sys/fs/cgroup").glob(f"*/{self.id}"):
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)


def write_image(file: Path, name: str, command: list[str]) -> None:
    """A docker archive with a static busybox and ``command``."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for folder in ("bin", "tmp", "data"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        tar.add("/bin/busybox", "bin/busybox")
        for applet in ("sh", "sleep", "httpd", "echo", "cat", "mkdir", "ls", "id", "true", "stty",
                       "seq", "date", "env", "wget", "kill", "test"):  # fmt: skip
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    data = layer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": command, "Env": ["PATH=/bin"]},
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{digest}"],
            },
        }
    ).encode()
    names: Any = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(file, "w") as tar:
        for path, body in (
            ("layer.tar", data),
            ("config.json", config),
            ("manifest.json", json.dumps(names).encode()),
        ):
            entry = tarfile.TarInfo(path)
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))


@contextlib.contextmanager
def real_node(folder: Path) -> Iterator[RealNode]:
    made = RealNode(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
