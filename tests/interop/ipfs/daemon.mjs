// A real IPFS node without peers, with kubo's RPC API on a free port:
//   node daemon.mjs REPO     prints {"api": "/ip4/127.0.0.1/tcp/PORT"} once it answers.
// Node 20 lacks one function that its parts use.
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new Promise((yes, no) => { resolve = yes; reject = no })
  return { promise, resolve, reject }
}

const { create } = await import('ipfs-core')
const { HttpApi } = await import('ipfs-http-server')

const ipfs = await create({
  repo: process.argv[2],
  offline: true,
  silent: true,
  init: { algorithm: 'Ed25519', emptyRepo: true },
  config: {
    Addresses: { API: '/ip4/127.0.0.1/tcp/0', Gateway: '', Swarm: [] },
    Bootstrap: [],
    Discovery: { MDNS: { Enabled: false }, webRTCStar: { Enabled: false } },
  },
})
const api = new HttpApi(ipfs)
await api.start()
const [, host, port] = api._apiServers[0].info.ma.toString().match(/ip4\/([^/]+)\/tcp\/(\d+)/)
console.log(JSON.stringify({ api: `/ip4/${host}/tcp/${port}` }))
