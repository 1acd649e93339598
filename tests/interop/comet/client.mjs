// A stranger's CometBFT client (cosmjs) reads a ledger: over HTTP, and blocks as they come over the
// websocket. Usage: node client.mjs RPC-URL BLOCKS TX-BASE64. It sends the transaction, waits for
// that many blocks, and prints what it understood as one JSON document.
import { Comet38Client, WebsocketClient, HttpClient } from "@cosmjs/tendermint-rpc";
import { fromBase64, toHex, toUtf8, fromUtf8 } from "@cosmjs/encoding";

const [url, wanted, tx] = process.argv.slice(2);
const http = await Comet38Client.create(new HttpClient(url));
const ws = await Comet38Client.create(new WebsocketClient(url.replace("http", "ws")));

const pushed = [];
const blocks = new Promise((resolve) => {
  const stream = ws.subscribeNewBlock();
  stream.addListener({
    next: (event) => {
      pushed.push(event.header.height);
      if (pushed.length >= Number(wanted)) resolve();
    },
    error: (error) => { console.error(error); process.exit(3); },
  });
});
const txs = [];
ws.subscribeTx().addListener({ next: (event) => txs.push(toHex(event.hash)) });
await ws.health();

const sent = await http.broadcastTxCommit({ tx: fromBase64(tx) });
await blocks;
const status = await http.status();
const height = status.syncInfo.latestBlockHeight;
const block = await http.block(height);
const results = await http.blockResults(height);
const found = await http.tx({ hash: sent.hash, prove: true });
const search = await http.txSearchAll({ query: "message.action='bank.send'" });
const chain = await http.blockchain(1, height);
const commit = await http.commit(height);
const validators = await http.validatorsAll(height);
const genesis = await http.genesis();
const info = await http.abciInfo();
const answer = await http.abciQuery({ path: "/counts/get", data: toUtf8("") });
const again = await http.broadcastTxSync({ tx: fromBase64(tx) });

console.log(JSON.stringify({
  network: status.nodeInfo.network,
  height,
  pushed,
  pushedTxs: txs,
  code: sent.txResult.code,
  hash: toHex(sent.hash),
  blockTxs: block.block.txs.length,
  blockHash: toHex(block.blockId.hash),
  lastBlock: block.block.header.lastBlockId ? toHex(block.block.header.lastBlockId.hash) : "",
  resultEvents: results.results[0].events.map((event) => event.type),
  foundHeight: found.height,
  proofTotal: found.proof.proof.total,
  searched: search.totalCount,
  headers: chain.blockMetas.length,
  commitHeight: commit.commit.height,
  commitSigned: commit.commit.signatures.length,
  validators: validators.validators.length,
  chainId: genesis.chainId,
  infoHeight: info.lastBlockHeight,
  counts: JSON.parse(fromUtf8(answer.value)).counts.accounts,
  againHash: toHex(again.hash),
  againCode: again.code,
}));
http.disconnect();
ws.disconnect();
process.exit(0);
