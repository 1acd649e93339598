"""Kademlia, as far as "who holds this?" needs it: FIND_NODE, GET_PROVIDERS, ADD_PROVIDER, PING.

Peers and keys live in one space of 256-bit numbers (SHA-256 of their bytes); near means a small
XOR. A record "peer P holds key K" is kept by the twenty peers nearest to K.

``messages``  the frames
``table``     whom we know, more of them the nearer they are to us
``records``   who said to hold what, until when
``dht``       lookups that walk towards a key; provide, find, and the serving side
"""

PROTOCOL = "/gantry/kad/1.0.0"
WITHDRAW = "/leasehold/kad-withdraw/1.0.0"
"""Kademlia cannot take a record back. Nodes of ours can: one frame with the key."""

K = 20
"""Bucket size, and peers in an answer (libp2p's)."""

COPIES = 10
"""Peers a record is told to: the nearest. libp2p tells twenty; a lookup asks the nearest few first,
and in a data centre ten do not vanish between two tellings."""

SURE = 3
"""A lookup is over when so many of the nearest peers it heard of have answered (libp2p's beta)."""

ALPHA = 5
"""Requests of one lookup under way at a time. libp2p has 10; the network here is a data centre."""
