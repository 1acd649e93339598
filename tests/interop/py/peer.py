"""A py-libp2p peer driven by JSON lines, the twin of ``js/peer.mjs``. Runs in its own venv.

py-libp2p's Kademlia speaks ``/ipfs/kad/1.0.0`` only; the constant is replaced so that it joins
ours. Nothing else is changed.
"""

import json
import sys
import traceback

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_key
from libp2p.custom_types import TProtocol
from libp2p.host.ping import PingService
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

KAD = TProtocol("/gantry/kad/1.0.0")
for _module in list(sys.modules.values()):
    if getattr(_module, "__name__", "").startswith("libp2p.kad_dht") and hasattr(
        _module, "PROTOCOL_ID"
    ):
        _module.PROTOCOL_ID = KAD

from libp2p.kad_dht.kad_dht import DHTMode, KadDHT  # noqa: E402

COORD = TProtocol("/gantry/coord/1.0.0")
replies: dict[str, bytes] = {}
seen: list[str] = []


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes((number & 0x7F | 0x80,))
        number >>= 7
    return out + bytes((number,))


async def exactly(stream, size: int) -> bytes:
    out = b""
    while len(out) < size:
        piece = await stream.read(size - len(out))
        if not piece:
            raise EOFError("the stream ended")
        out += piece
    return out


async def read_frame(stream) -> bytes:
    size = shift = 0
    while True:
        byte = (await exactly(stream, 1))[0]
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return await exactly(stream, size)


def key(digest: str) -> str:
    return "1220" + digest


class Operations:
    def __init__(self, host, dht) -> None:
        self.host, self.dht = host, dht

    async def info(self) -> dict:
        peer = self.host.get_id().to_string()
        addresses = [str(a) for a in self.host.get_addrs()]
        return {"peer": peer, "addresses": addresses}

    async def dial(self, address: str) -> dict:
        info = info_from_p2p_addr(Multiaddr(address))
        await self.host.connect(info)
        return {"peer": info.peer_id.to_string()}

    async def ping(self, peer: str) -> dict:
        times = await PingService(self.host).ping(ID.from_string(peer))
        return {"ms": times[0] / 1000}

    async def protocols(self, peer: str) -> dict:
        found = self.host.get_peerstore().get_protocols(ID.from_string(peer))
        return {"protocols": [str(p) for p in found]}

    async def reply(self, kind: str, frame: str) -> dict:
        replies[kind] = bytes.fromhex(frame)
        return {}

    async def offer(self, protocol: str) -> dict:
        self.host.set_stream_handler(TProtocol(protocol), serve)
        return {}

    async def seen(self) -> dict:
        frames, seen[:] = list(seen), []
        return {"frames": frames}

    async def rpc(self, peer: str, frame: str, protocol: str = COORD) -> dict:
        stream = await self.host.new_stream(ID.from_string(peer), [TProtocol(protocol)])
        data = bytes.fromhex(frame)
        await stream.write(varint(len(data)) + data)
        await stream.close_write()
        reply = await read_frame(stream)
        await stream.close()
        return {"frame": reply.hex()}

    async def provide(self, digest: str) -> dict:
        return {"done": await self.dht.provide(key(digest))}

    async def find(self, digest: str) -> dict:
        found = await self.dht.find_providers(key(digest))
        return {
            "found": [
                {"peer": i.peer_id.to_string(), "addresses": [str(a) for a in i.addrs]}
                for i in found
            ]
        }

    async def table(self) -> dict:
        return {"size": self.dht.get_routing_table_size()}

    async def learn(self, peer: str) -> dict:
        return {"added": await self.dht.add_peer(ID.from_string(peer))}


async def serve(stream) -> None:
    request = await read_frame(stream)
    seen.append(request.hex())
    reply = replies.get(request[:1].hex(), request)
    await stream.write(varint(len(reply)) + reply)
    await stream.close()


def say(message: dict) -> None:
    print(json.dumps(message), flush=True)


async def answer(operations: Operations, line: str) -> None:
    request = json.loads(line)
    number, op = request.pop("id"), request.pop("op")
    try:
        with trio.fail_after(30):
            say({"id": number, "result": await getattr(operations, op)(**request)})
    except Exception as error:
        traceback.print_exc()
        say({"id": number, "error": repr(error)})


async def main() -> None:
    keys = create_new_key_pair()
    # Noise only: the default list also offers plaintext.
    noise = Noise(keys, noise_privkey=new_noise_key().private_key)
    host = new_host(key_pair=keys, sec_opt={NOISE: noise})
    host.set_stream_handler(COORD, serve)
    async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]), trio.open_nursery() as nursery:
        nursery.start_soon(host.get_peerstore().start_cleanup_task, 60)
        dht = KadDHT(host, DHTMode.SERVER, enable_random_walk=False)
        async with background_trio_service(dht):
            operations = Operations(host, dht)
            say({"ready": await operations.info()})
            stdin = trio.wrap_file(sys.stdin)
            async for line in stdin:
                nursery.start_soon(answer, operations, line)
            nursery.cancel_scope.cancel()


trio.run(main)
