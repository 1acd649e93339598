"""The part of libp2p we need, on asyncio: strangers connect, prove who they are and share one wire.

A connection climbs a ladder, each rung a module that can be read and tested alone::

    TCP bytes ── multistream ── noise + security ── yamux ── streams ── protocols
                 (which?)       (who? encrypted)    (many)   (one exchange each)

``multiaddr``    addresses as text and bytes: ``/ip4/10.0.0.7/tcp/29401/p2p/12D3Koo…``
``keys``         key pairs, signatures, peer ids, the identity file
``protobuf``     the wire format of protocol buffers, bounded; ``varint`` beneath it
``multistream``  multistream-select 1.0.0, with the optimistic form
``noise``        Noise_XX_25519_ChaChaPoly_SHA256, nothing of libp2p in it
``security``     the libp2p payload that ties a Noise key to a peer id
``yamux``        yamux 1.0.0: frames, streams, enforced windows
``budget``       how many bytes strangers may make us hold
``connection``   the ladder on one TCP socket; batches frames into one message and one write
``host``         listen, dial, caps, protocols; ``identify`` and ``ping`` are protocols
``kad``          Kademlia: who holds a key (FIND_NODE, GET/ADD_PROVIDER, PING)

Three promises hold at every rung: nothing a peer sends ends the process, wedges a connection or
makes memory grow past the budget. Refusals are counted (``leasehold_p2p_refused_total``).
"""
