"""The node's network namespace: made once, held by the keeper, joined by every replica.

All of it is done from one thread that lives in that namespace (network namespaces belong to
threads), so sockets opened there reach the replicas while the rest of the provider stays on the
host. A replica's namespace is held by the keeper under ``net/<key>`` from before its first process
until after its last; when both are gone the kernel removes devices and routes by itself.

After a restart of the provider the rules are rebuilt, in one transaction, from what runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import ipaddress
import os
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from leasehold.core.clock import Clock
from leasehold.core.errors import Kind, LeaseholdError
from leasehold.core.logs import get_logger
from leasehold.core.service import Service
from leasehold.deploy.keeper import linux
from leasehold.deploy.keeper.client import KeeperClient
from leasehold.deploy.net import rules
from leasehold.deploy.net.netlink import Netlink, NetlinkError
from leasehold.deploy.net.nft import Nft, NftError
from leasehold.deploy.net.rules import GATEWAY, Attachment, Publication

UPLINK = "up"
"""The node's end of the link to the host."""

NODE = "net"
"""Name under which the keeper holds the node's namespace."""

T = TypeVar("T")
log = get_logger(__name__)


def device_of(keeper: Path) -> str:
    """What the host's end of the link to the node is called, and the host's table of rules."""
    return "lh" + hashlib.sha256(str(keeper).encode()).hexdigest()[:8]


def give_back(netlink: Netlink, nft: Nft, device: str, folder: Path) -> None:
    """Make the host as it was: link, table and forwarding. ``folder`` has what it was before."""
    nft.run(rules.drop_host_table(device))
    netlink.remove_link(device)
    note = folder / "ip_forward.before"
    if note.exists():
        _sysctl("net/ipv4/ip_forward", note.read_text())
        note.unlink()


@dataclass(frozen=True, slots=True)
class Joined:
    """A replica's network: ``path`` is what the runtime is given as namespace."""

    attachment: Attachment
    path: str


class NodeNetwork(Service):
    """``pool``: the addresses of replicas (never seen outside the node's namespace). ``uplink``
    off: no way out and no published ports, and the host is not touched at all."""

    def __init__(
        self,
        keeper: KeeperClient,
        *,
        pool: str = "10.213.0.0/16",
        uplink: bool = True,
        mtu: int = 1400,
        folder: Path,
        clock: Clock | None = None,
    ) -> None:
        super().__init__("network", clock=clock)
        self.keeper = keeper
        self.pool = ipaddress.IPv4Network(pool)
        self.uplink = uplink
        self.mtu = mtu
        self.folder = folder
        self.device = device_of(keeper.folder)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="node-network")
        self._used: set[ipaddress.IPv4Address] = set()
        self._cursor = 0
        self._counter = 0
        self._attachments: dict[str, Attachment] = {}
        self._publications: dict[tuple[str, int], Publication] = {}
        self._host_ns = -1
        self._node_ns = -1

    # -- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        self.resources.callback(self._thread.shutdown)
        self._host_ns = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.resources.callback(os.close, self._host_ns)
        await self._enter()
        await self.do(self._open)
        self.resources.callback(self._close)
        await self.do(self._arrange)

    async def _enter(self) -> None:
        try:
            _, (fd,) = await self.keeper.call("fetch", name=NODE)
        except LeaseholdError as error:
            if error.code != "not_held":
                raise
            fd = await self.do(self._create)
            await self.keeper.ask("hold", name=NODE, fds=[fd])
        else:
            await self.do(lambda: linux.setns(fd, linux.CLONE_NEWNET))
        self._node_ns = fd
        self.resources.callback(os.close, fd)
        self.keeper.on_reconnect.append(self._hold_again)

    def _hold_again(self) -> None:
        """A new keeper may not have found our namespace in what it adopted."""
        self.spawn(self.keeper.ask("hold", name=NODE, fds=[self._node_ns]), name="hold")

    @staticmethod
    def _create() -> int:
        linux.unshare(linux.CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def _open(self) -> None:
        self._netlink = Netlink()
        self._nft = Nft(lambda: linux.setns(self._node_ns, linux.CLONE_NEWNET))

    def _close(self) -> None:
        self._netlink.close()
        self._nft.close()

    def _arrange(self) -> None:
        """Everything that is there once: loopback, gateway address, forwarding, uplink, rules."""
        loopback = self._netlink.index("lo") or 1
        self._netlink.up(loopback)
        self._netlink.add_address(loopback, f"{GATEWAY}/32")
        _sysctl("net/ipv4/ip_forward", "1")
        numbers = [int(n[2:]) for n in self._netlink.links() if n[:2] == "lr" and n[2:].isdigit()]
        self._counter = max(numbers, default=0)
        if self.uplink:
            self._arrange_uplink()
        self._rebuild()

    def _arrange_uplink(self) -> None:
        node_side = self._netlink.index(UPLINK)
        with self._on_host() as (netlink, nft):
            if node_side is None:
                netlink.remove_link(self.device)
                netlink.add_veth(self.device, UPLINK, self._node_ns, mtu=self.mtu)
            index = netlink.index(self.device)
            assert index is not None
            network = self._uplink_network(netlink)
            host, node = network[1], network[2]
            netlink.add_address(index, f"{host}/30")
            netlink.up(index)
            self._node_address = str(node)
            nft.run(rules.host_table(self.device, str(node), self._publications.values()))
            self._enable_forwarding()
        node_side = self._netlink.index(UPLINK)
        assert node_side is not None
        self._netlink.add_address(node_side, f"{node}/30")
        self._netlink.up(node_side)
        self._netlink.add_route("0.0.0.0/0", node_side, gateway=str(host))

    def _uplink_network(self, netlink: Netlink) -> ipaddress.IPv4Network:
        """Four addresses of 169.254.192.0/18 that belong to this node's name."""
        slot = int(self.device[2:], 16) % 4096
        return ipaddress.IPv4Network((int(ipaddress.IPv4Address("169.254.192.0")) + slot * 4, 30))

    def _enable_forwarding(self) -> None:
        """Remember what the host had, so that :meth:`dismantle` can give it back."""
        with open("/proc/sys/net/ipv4/ip_forward", encoding="ascii") as current:
            before = current.read().strip()
        note = self.folder / "ip_forward.before"
        if before == "0":
            note.write_text(before)
            _sysctl("net/ipv4/ip_forward", "1")
        _sysctl(f"net/ipv4/conf/{self.device}/route_localnet", "1")

    @contextlib.contextmanager
    def _on_host(self):  # type: ignore[no-untyped-def]
        """In the network thread: sockets that speak for the host's namespace."""
        linux.setns(self._host_ns, linux.CLONE_NEWNET)
        try:
            netlink = Netlink()
            nft = Nft(lambda: linux.setns(self._host_ns, linux.CLONE_NEWNET))
            try:
                yield netlink, nft
            finally:
                netlink.close()
                nft.close()
        finally:
            linux.setns(self._node_ns, linux.CLONE_NEWNET)

    async def do(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the network thread, in the node's namespace."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def socket(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """A non-blocking IPv4 socket inside the node's namespace: it reaches the replicas."""

        def make() -> socket.socket:
            sock = socket.socket(socket.AF_INET, kind)
            sock.setblocking(False)
            return sock

        return await self.do(make)

    def restore(self, publications: Iterable[Publication]) -> None:
        """Before the start: what was published when the provider last ran."""
        self._publications.update(((p.protocol, p.port), p) for p in publications)

    # -- replicas ---------------------------------------------------------------------------------

    async def adopt(self, attachments: dict[str, Attachment]) -> None:
        """What runs already, by key: take its addresses and write the rules anew."""
        self._attachments.update(attachments)
        self._used.update(ipaddress.IPv4Address(a.address) for a in attachments.values())
        await self.do(self._rebuild)

    def _rebuild(self) -> None:
        self._nft.run(
            rules.node_table(UPLINK, self._attachments.values(), self._publications.values())
        )
        if self.uplink:
            with self._on_host() as (_, nft):
                nft.run(
                    rules.host_table(self.device, self._node_address, self._publications.values())
                )

    async def join(self, key: str, *, mark: int, egress: str = "public") -> Joined:
        """A new namespace with an address for the replica ``key``, held until :meth:`leave`."""
        address = self._take_address()
        self._counter += 1
        attachment = Attachment(f"lr{self._counter}", str(address), mark, egress)
        self._attachments[key] = attachment
        try:
            fd = await self.do(lambda: self._attach(attachment))
            try:
                path = (await self.keeper.ask("hold", name=f"net/{key}", fds=[fd]))["path"]
            finally:
                os.close(fd)
        except BaseException:
            self._attachments.pop(key, None)
            self._used.discard(address)
            raise
        return Joined(attachment, path)

    async def inherit(self, old: str, new: str) -> Joined | None:
        """Give the network of the replica ``old``, which has ended, to ``new`` (or to itself).

        Address and rules stay, so whoever talks to it notices nothing but a pause: a connection is
        refused and tried again. None when there is nothing to inherit.
        """
        attachment = self._attachments.get(old)
        if attachment is None:
            return None
        try:
            _, (fd,) = await self.keeper.call("fetch", name=f"net/{old}")
        except LeaseholdError as error:
            if error.code != "not_held":
                raise
            return None
        try:
            path = (await self.keeper.ask("hold", name=f"net/{new}", fds=[fd]))["path"]
        finally:
            os.close(fd)
        self._attachments[new] = attachment
        if old != new:
            del self._attachments[old]
            await self.keeper.ask("drop", name=f"net/{old}")
        return Joined(attachment, path)

    async def leave(self, key: str) -> None:
        """Give up address and rules; the kernel removes the devices with the namespace."""
        attachment = self._attachments.pop(key, None)
        if attachment is not None:
            with contextlib.suppress(NftError):
                await self.do(lambda: self._nft.run(rules.detach(attachment)))
            self._used.discard(ipaddress.IPv4Address(attachment.address))
        await self.keeper.ask("drop", name=f"net/{key}")

    def _take_address(self) -> ipaddress.IPv4Address:
        """The next free one; going round, so that an address is not reused at once."""
        size = self.pool.num_addresses - 2
        for _ in range(size):
            self._cursor = self._cursor % size + 1
            address = self.pool[self._cursor]
            if address not in self._used:
                self._used.add(address)
                return address
        raise LeaseholdError(
            "addresses_exhausted",
            f"all {size} addresses of {self.pool} are in use",
            kind=Kind.UNAVAILABLE,
        )

    def _attach(self, a: Attachment) -> int:
        inside = -1
        try:
            inside = self._create()
            inner = Netlink()
            # A port below 1024 is nothing special in a network of one's own. The runtime could not
            # set it: the replica's user namespace does not own this network.
            _sysctl("net/ipv4/ip_unprivileged_port_start", "0")
        finally:
            linux.setns(self._node_ns, linux.CLONE_NEWNET)
        try:
            try:
                self._netlink.add_veth(a.device, "eth0", inside, mtu=self.mtu)
            except NetlinkError as error:
                if error.errno == errno.EEXIST:
                    raise LeaseholdError(
                        "device_exists", f"{a.device} exists already", kind=Kind.CONFLICT
                    ) from None
                raise
            outer_index, inner_index = self._netlink.index(a.device), inner.index("eth0")
            assert outer_index is not None
            assert inner_index is not None
            inner.up(inner.index("lo") or 1)
            inner.add_address(inner_index, f"{a.address}/32")
            inner.up(inner_index)
            inner.add_route(f"{GATEWAY}/32", inner_index)
            inner.add_route("0.0.0.0/0", inner_index, gateway=GATEWAY)
            inner.add_neighbour(inner_index, GATEWAY, self._netlink.mac(outer_index))
            self._netlink.up(outer_index)
            self._netlink.add_route(f"{a.address}/32", outer_index)
            self._netlink.add_neighbour(outer_index, a.address, inner.mac(inner_index))
            self._nft.run(rules.attach(a))
            return inside
        except BaseException:
            os.close(inside)
            raise
        finally:
            inner.close()

    # -- ports ------------------------------------------------------------------------------------

    async def publish(self, publications: Iterable[Publication]) -> None:
        """Lead ports of the host to replicas; a port published before is moved."""
        new = list(publications)
        if not new:
            return
        if not self.uplink:
            raise LeaseholdError(
                "ports_unavailable",
                "this node publishes no ports (deploy.uplink is off)",
                kind=Kind.UNSUPPORTED,
            )
        await self.do(lambda: self._publish(new))

    def _publish(self, new: list[Publication]) -> None:
        inside = outside = ""
        for p in new:
            old = self._publications.get((p.protocol, p.port))
            if old == p:
                continue
            if old is None:
                outside += rules.host_open(self.device, self._node_address, p)
            else:
                inside += rules.unpublish(old)
            inside += rules.publish(p)
            self._publications[p.protocol, p.port] = p
        if inside:
            self._nft.run(inside)
        if outside:
            with self._on_host() as (_, nft):
                nft.run(outside)

    async def unpublish(self, ports: Iterable[tuple[str, int]]) -> None:
        """Close ``(protocol, port)``s."""
        gone = [p for key in ports if (p := self._publications.pop(key, None)) is not None]

        def close() -> None:
            self._nft.run("".join(map(rules.unpublish, gone)))
            with self._on_host() as (_, nft):
                nft.run("".join(rules.host_close(self.device, p) for p in gone))

        if gone:
            await self.do(close)

    # -- end --------------------------------------------------------------------------------------

    async def dismantle(self) -> None:
        """Give the host back as it was: uplink, table and forwarding. Replicas must be gone."""

        def undo() -> None:
            if not self.uplink:
                return
            with self._on_host() as (netlink, nft):
                give_back(netlink, nft, self.device, self.folder)

        await self.do(undo)
        await self.keeper.ask("drop", name=NODE)


def _sysctl(name: str, value: str) -> None:
    with open(f"/proc/sys/{name}", "w", encoding="ascii") as file:
        file.write(value)
