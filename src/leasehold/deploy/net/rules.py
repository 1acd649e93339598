"""The nftables rules of the node, as text: whole tables at start, single elements afterwards.

Inside the node's namespace (table ``inet lease``):

- ``own``     which address a device may speak from: everything else from a lease is dropped, so a
              source address can be trusted from here on, also by the DNS server
- ``tenant``  device to the lease's mark, ``member`` mark and address: who may speak to whom
- ``egress``  device to the chain that says how far out it may go
- ``pub``     protocol and port to the replica that answers it

On the host (one table named after the uplink): published ports lead in by the uplink, and what
leaves takes the host's address.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

GATEWAY = "169.254.1.1"
"""The address every replica sees as its router and its DNS server; only ever link-local."""

PRIVATE = (
    "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, "
    "192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3"
)
"""What "public IPv4 only" leaves out: RFC 6890's special blocks, so neither the provider's own
network nor a cloud's metadata service (169.254.169.254) can be reached."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """One replica's place in the network. ``mark`` is its lease's number, unique on the node."""

    device: str
    address: str
    mark: int
    egress: str = "public"
    """``none``, ``public`` or ``all``."""


@dataclass(frozen=True, slots=True)
class Publication:
    """``protocol`` (tcp or udp) ``port`` of the host leads to a replica's ``address:target``.

    With ``front`` it is not the host's port but ``front_port`` of that leased address; ``port`` is
    then only what it is called between host and node.
    """

    protocol: str
    port: int
    address: str
    target: int
    front: str = ""
    front_port: int = 0


def node_table(
    uplink: str, attachments: Iterable[Attachment], publications: Iterable[Publication]
) -> str:
    """The whole table in one transaction, replacing what was there."""
    base = f"""
table inet lease
delete table inet lease
table inet lease {{
  set own {{ type ifname . ipv4_addr
  }}
  map tenant {{ type ifname : mark
  }}
  set member {{ type mark . ipv4_addr
  }}
  map egress {{ type ifname : verdict
  }}
  map pub {{ type inet_proto . inet_service : ipv4_addr . inet_service
  }}
  chain egress_none {{
    drop
  }}
  chain egress_public {{
    ip daddr {{ {PRIVATE} }} drop
    accept
  }}
  chain egress_all {{
    accept
  }}
  chain spoofing {{
    type filter hook prerouting priority -300; policy accept;
    iifname . ip saddr @own meta mark set iifname map @tenant accept
    iifname "lr*" drop
  }}
  chain publishing {{
    type nat hook prerouting priority -100; policy accept;
    iifname "{uplink}" dnat ip addr . port to meta l4proto . th dport map @pub
  }}
  chain forwarding {{
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    ct status dnat accept
    meta mark . ip daddr @member accept
    oifname "{uplink}" iifname vmap @egress
  }}
  chain receiving {{
    type filter hook input priority 0; policy drop;
    ct state established,related accept
    iifname "lo" accept
    ip daddr {GATEWAY} meta l4proto {{ tcp, udp }} th dport 53 accept
  }}
  chain leaving {{
    type nat hook postrouting priority 100; policy accept;
    oifname "{uplink}" masquerade
  }}
}}
"""
    return base + "".join(map(attach, attachments)) + "".join(map(publish, publications))


def attach(a: Attachment) -> str:
    return (
        f"add element inet lease own {{ {a.device} . {a.address} }}\n"
        f"add element inet lease tenant {{ {a.device} : {a.mark} }}\n"
        f"add element inet lease member {{ {a.mark} . {a.address} }}\n"
        f"add element inet lease egress {{ {a.device} : jump egress_{a.egress} }}\n"
    )


def detach(a: Attachment) -> str:
    return (
        f"delete element inet lease own {{ {a.device} . {a.address} }}\n"
        f"delete element inet lease tenant {{ {a.device} }}\n"
        f"delete element inet lease member {{ {a.mark} . {a.address} }}\n"
        f"delete element inet lease egress {{ {a.device} }}\n"
    )


def publish(p: Publication) -> str:
    return f"add element inet lease pub {{ {p.protocol} . {p.port} : {p.address} . {p.target} }}\n"


def unpublish(p: Publication) -> str:
    return f"delete element inet lease pub {{ {p.protocol} . {p.port} }}\n"


def host_table(device: str, node_address: str, ports: Iterable[Publication]) -> str:
    """The host's own table, named after the uplink ``device``; replaces what was there."""
    base = f"""
table ip {device}
delete table ip {device}
table ip {device} {{
  set ports {{ type inet_proto . inet_service
  }}
  map leased {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
  }}
  chain guard {{
    type filter hook prerouting priority -300; policy accept;
    iifname "{device}" ip daddr 127.0.0.0/8 drop
    iifname "{device}" ip saddr != {node_address} drop
  }}
  chain incoming {{
    type nat hook prerouting priority -100; policy accept;
    iifname != "{device}" dnat ip addr . port to ip daddr . meta l4proto . th dport map @leased
    iifname != "{device}" fib daddr type local meta l4proto . th dport @ports dnat to {node_address}
  }}
  chain local {{
    type nat hook output priority -100; policy accept;
    dnat ip addr . port to ip daddr . meta l4proto . th dport map @leased
    fib daddr type local meta l4proto . th dport @ports dnat to {node_address}
  }}
  chain guarding {{
    type filter hook input priority 0; policy accept;
    iifname "{device}" ct state new drop
  }}
  chain leaving {{
    type nat hook postrouting priority 100; policy accept;
    ip saddr {node_address} oifname != "{device}" masquerade
    ip saddr 127.0.0.0/8 oifname "{device}" masquerade
  }}
}}
"""
    return base + "".join(host_open(device, node_address, p) for p in ports)


def host_open(device: str, node_address: str, p: Publication) -> str:
    if not p.front:
        return f"add element ip {device} ports {{ {p.protocol} . {p.port} }}\n"
    leads = f"{p.front} . {p.protocol} . {p.front_port} : {node_address} . {p.port}"
    return f"add element ip {device} leased {{ {leads} }}\n"


def host_close(device: str, p: Publication) -> str:
    if not p.front:
        return f"delete element ip {device} ports {{ {p.protocol} . {p.port} }}\n"
    return f"delete element ip {device} leased {{ {p.front} . {p.protocol} . {p.front_port} }}\n"


def drop_host_table(device: str) -> str:
    return f"table ip {device}\ndelete table ip {device}\n"
