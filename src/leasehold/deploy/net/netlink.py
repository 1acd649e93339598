"""rtnetlink by hand: the dozen messages that a routed container network needs.

A socket speaks for the network namespace in which it was opened, for good and from any thread.
Half a millisecond configures a container; the usual programs take fifty.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct

_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE, _NLM_F_REPLACE = 1, 4, 0x200, 0x400, 0x100
_NLM_F_DUMP = 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWADDR, _RTM_NEWROUTE, _RTM_DELROUTE, _RTM_NEWNEIGH = 20, 24, 25, 28
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 4, 18, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_IFF_UP = 1
_RT_SCOPE_LINK, _RT_SCOPE_UNIVERSE = 253, 0
_NUD_PERMANENT = 0x80


class NetlinkError(OSError):
    """The kernel's refusal of one message."""


class Netlink:
    """Links, addresses and routes of the network namespace it is made in."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._sock.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        self._sock.close()

    def index(self, name: str) -> int | None:
        """The number of a link, None when there is none of that name."""
        try:
            reply = self._ask(_RTM_GETLINK, _link(0) + _attr(_IFLA_IFNAME, _text(name)))
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return int(struct.unpack_from("i", reply, 4)[0])

    def mac(self, index: int) -> bytes:
        """The hardware address of a link."""
        return _attributes(self._ask(_RTM_GETLINK, _link(index))[16:])[_IFLA_ADDRESS]

    def links(self) -> dict[str, int]:
        """Name to number of every link."""
        found = {}
        for body in self._dump(_RTM_GETLINK, _link(0)):
            name = _attributes(body[16:])[_IFLA_IFNAME].rstrip(b"\0").decode()
            found[name] = int(struct.unpack_from("i", body, 4)[0])
        return found

    def add_veth(self, name: str, peer: str, peer_netns: int, *, mtu: int) -> None:
        """A pair of devices: ``name`` here, ``peer`` in the namespace of the descriptor."""
        other = (
            _link(0)
            + _attr(_IFLA_IFNAME, _text(peer))
            + _attr(_IFLA_MTU, struct.pack("I", mtu))
            + _attr(_IFLA_NET_NS_FD, struct.pack("I", peer_netns))
        )
        info = _attr(_IFLA_INFO_KIND, b"veth") + _attr(
            _IFLA_INFO_DATA, _attr(_VETH_INFO_PEER, other)
        )
        self._ask(
            _RTM_NEWLINK,
            _link(0)
            + _attr(_IFLA_IFNAME, _text(name))
            + _attr(_IFLA_MTU, struct.pack("I", mtu))
            + _attr(_IFLA_LINKINFO, info),
            _NLM_F_CREATE | _NLM_F_EXCL,
        )

    def up(self, index: int) -> None:
        self._ask(_RTM_NEWLINK, struct.pack("=BxHiII", 0, 0, index, _IFF_UP, _IFF_UP))

    def remove_link(self, name: str) -> None:
        """Delete a link; it takes the kernel 40 ms. Nothing happens when it is gone."""
        index = self.index(name)
        if index is not None:
            self._ask(_RTM_DELLINK, _link(index))

    def add_address(self, index: int, address: str) -> None:
        """``address`` with prefix, like ``10.0.0.1/32``; repeating it is fine."""
        interface = ipaddress.ip_interface(address)
        packed = interface.ip.packed
        body = struct.pack(
            "=BBBBi",
            _family(interface.ip),
            interface.network.prefixlen,
            0,
            _RT_SCOPE_UNIVERSE,
            index,
        )
        self._ask(
            _RTM_NEWADDR,
            body + _attr(1, packed) + _attr(2, packed),
            _NLM_F_CREATE | _NLM_F_REPLACE,
        )

    def add_route(self, destination: str, index: int, *, gateway: str | None = None) -> None:
        """A route by a link, direct unless there is a ``gateway``; replaces an equal one."""
        self._ask(
            _RTM_NEWROUTE, _route(destination, index, gateway), _NLM_F_CREATE | _NLM_F_REPLACE
        )

    def remove_route(self, destination: str, index: int) -> None:
        try:
            self._ask(_RTM_DELROUTE, _route(destination, index, None))
        except NetlinkError as error:
            if error.errno not in (errno.ESRCH, errno.ENODEV):
                raise

    def add_neighbour(self, index: int, address: str, mac: bytes) -> None:
        """A permanent entry, so that nobody has to ask (or may answer) by ARP."""
        ip = ipaddress.ip_address(address)
        body = struct.pack("=BxxxiHBB", _family(ip), index, _NUD_PERMANENT, 0, 0)
        self._ask(
            _RTM_NEWNEIGH,
            body + _attr(1, ip.packed) + _attr(2, mac),
            _NLM_F_CREATE | _NLM_F_REPLACE,
        )

    def _send(self, kind: int, body: bytes, flags: int) -> int:
        self._sequence += 1
        header = struct.pack("=IHHII", 16 + len(body), kind, flags, self._sequence, 0)
        self._sock.send(header + body)
        return self._sequence

    def _ask(self, kind: int, body: bytes, flags: int = 0) -> bytes:
        """One request; the body of its answer, empty for a plain acknowledgement."""
        sequence = self._send(kind, body, _NLM_F_REQUEST | _NLM_F_ACK | flags)
        answer = b""
        while True:
            for type_, number, content in self._messages():
                if number != sequence:
                    continue
                if type_ == _NLMSG_ERROR:
                    code = -int(struct.unpack_from("i", content)[0])
                    if code:
                        raise NetlinkError(code, os.strerror(code))
                    return answer
                answer = content

    def _dump(self, kind: int, body: bytes) -> list[bytes]:
        sequence = self._send(kind, body, _NLM_F_REQUEST | _NLM_F_DUMP)
        found: list[bytes] = []
        while True:
            for type_, number, content in self._messages():
                if number != sequence:
                    continue
                if type_ == _NLMSG_DONE:
                    return found
                found.append(content)

    def _messages(self) -> list[tuple[int, int, bytes]]:
        data = self._sock.recv(1 << 17)
        found = []
        offset = 0
        while offset < len(data):
            length, type_, _, sequence, _ = struct.unpack_from("=IHHII", data, offset)
            found.append((type_, sequence, data[offset + 16 : offset + length]))
            offset += (length + 3) & ~3
        return found


def _link(index: int) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, 0, 0)


def _route(destination: str, index: int, gateway: str | None) -> bytes:
    network = ipaddress.ip_network(destination)
    scope = _RT_SCOPE_UNIVERSE if gateway else _RT_SCOPE_LINK
    # family, dst_len, src_len, tos, table main, protocol static, scope, type unicast, flags
    body = struct.pack(
        "=BBBBBBBBI", _family(network.network_address), network.prefixlen, 0, 0, 254, 4, scope, 1, 0
    )
    if network.prefixlen:
        body += _attr(_RTA_DST, network.network_address.packed)
    body += _attr(_RTA_OIF, struct.pack("i", index))
    if gateway:
        body += _attr(_RTA_GATEWAY, ipaddress.ip_address(gateway).packed)
    return body


def _family(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    return socket.AF_INET if ip.version == 4 else socket.AF_INET6


def _text(name: str) -> bytes:
    return name.encode() + b"\0"


def _attr(kind: int, data: bytes) -> bytes:
    length = 4 + len(data)
    return struct.pack("=HH", length, kind) + data + bytes(-length % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found
