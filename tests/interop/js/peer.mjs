// A js-libp2p peer driven by JSON lines: one request a line on stdin, one answer a line on stdout.
// Frames travel as hex, so that what crosses the wire is judged by the test and not here.
import { createInterface } from 'node:readline'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { identify, identifyPush } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { peerIdFromString } from '@libp2p/peer-id'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { CID } from 'multiformats/cid'
import * as Digest from 'multiformats/hashes/digest'
import { lpStream } from '@libp2p/utils'

const COORD = '/gantry/coord/1.0.0'
const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionMonitor: { enabled: false },
  services: {
    identify: identify(),
    identifyPush: identifyPush(),
    ping: ping(),
    dht: kadDHT({
      protocol: '/gantry/kad/1.0.0',
      clientMode: false,
      peerInfoMapper: passthroughMapper,
      logPrefix: 'libp2p:gantry'
    })
  }
})

const replies = new Map() // first byte of the request's envelope -> hex of the reply envelope
const seen = []
const hex = (bytes) => Buffer.from(bytes.subarray()).toString('hex')
const unhex = (text) => Uint8Array.from(Buffer.from(text, 'hex'))
const most = { maxInboundStreams: 4096, maxOutboundStreams: 4096 }

const serve = async (stream) => {
  const lp = lpStream(stream)
  const request = await lp.read()
  seen.push(hex(request))
  const reply = replies.get(hex(request).slice(0, 2))
  await lp.write(reply == null ? request.subarray() : unhex(reply))
  await stream.close()
}
await node.handle(COORD, serve, most)

async function rpc (peer, frame, protocol = COORD) {
  const connection = node.getConnections(peer)[0] ?? await node.dial(peer)
  const stream = await connection.newStream(protocol, most)
  const lp = lpStream(stream)
  await lp.write(unhex(frame))
  const reply = await lp.read()
  await stream.close()
  return hex(reply)
}

function key (digest) {
  return CID.createV1(0x55, Digest.create(0x12, unhex(digest)))
}

const operations = {
  async info () {
    return { peer: node.peerId.toString(), addresses: node.getMultiaddrs().map(String) }
  },
  async dial ({ address }) {
    const connection = await node.dial(multiaddr(address))
    return { peer: connection.remotePeer.toString(), muxer: connection.multiplexer, encryption: connection.encryption }
  },
  async ping ({ peer }) { return { ms: await node.services.ping.ping(peerIdFromString(peer)) } },
  async protocols ({ peer }) {
    return { protocols: (await node.peerStore.get(peerIdFromString(peer))).protocols }
  },
  async reply ({ kind, frame }) { replies.set(kind, frame); return {} },
  async offer ({ protocol }) { await node.handle(protocol, serve, most); return {} },
  async seen () { return { frames: seen.splice(0) } },
  async rpc ({ peer, frame, protocol }) { return { frame: await rpc(peerIdFromString(peer), frame, protocol) } },
  async provide ({ digest }) {
    for await (const event of node.services.dht.provide(key(digest))) { void event }
    return {}
  },
  async find ({ digest }) {
    const found = []
    for await (const event of node.services.dht.findProviders(key(digest))) {
      for (const provider of event.providers ?? []) {
        found.push({ peer: provider.id.toString(), addresses: provider.multiaddrs.map(String) })
      }
    }
    return { found }
  },
  async table () { return { size: node.services.dht.routingTable.size } },
  async bench ({ peer, frame, concurrency, seconds }) {
    const id = peerIdFromString(peer)
    const times = []
    await rpc(id, frame)
    const start = performance.now()
    const end = start + seconds * 1000
    await Promise.all(Array.from({ length: concurrency }, async () => {
      while (performance.now() < end) {
        const at = performance.now()
        await rpc(id, frame)
        times.push(performance.now() - at)
      }
    }))
    const elapsed = (performance.now() - start) / 1000
    times.sort((a, b) => a - b)
    return { rate: times.length / elapsed, p99_ms: times[Math.floor(times.length * 0.99)] }
  },
  async stop () { await node.stop(); return {} }
}

process.stdout.write(JSON.stringify({ ready: await operations.info() }) + '\n')
for await (const text of createInterface({ input: process.stdin })) {
  const { id, op, ...args } = JSON.parse(text)
  // Not awaited here: several requests may be under way at once.
  operations[op](args).then(
    (result) => process.stdout.write(JSON.stringify({ id, result }) + '\n'),
    (error) => process.stdout.write(JSON.stringify({ id, error: `${error.name}: ${error.message}` }) + '\n')
  )
}
await node.stop()
process.exit(0)
