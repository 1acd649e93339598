// Node 20 lacks Promise.withResolvers, which this generation of js-libp2p expects.
Promise.withResolvers ??= function () { let resolve, reject; const promise = new this((a, b) => { resolve = a; reject = b }); return { promise, resolve, reject } }
