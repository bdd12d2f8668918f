// An upload that survives broken connections, by the wire table alone. The README shows it.
'use strict'

const { once } = require('node:events')
const { setTimeout: sleep } = require('node:timers/promises')
const { Metadata, status } = require('@grpc/grpc-js')

const again = [status.UNAVAILABLE, status.DEADLINE_EXCEEDED, status.CANCELLED, status.ABORTED, status.INTERNAL, status.UNKNOWN]

async function upload (method, session, records, part = 500) {
  for (let committed = 0, epoch = {}; committed < records.length;) {
    const head = Metadata.fromHttp2Headers({ 'flow-session': session, 'flow-start': String(committed + 1), ...epoch })
    head.setOptions({ waitForReady: true })
    const call = method(head, () => {})
    for (const record of records.slice(committed, committed + part)) call.write(record)
    call.end()
    const [{ code, details, metadata }] = await once(call, 'status')
    const end = metadata.getMap()
    if ('flow-failed' in end || (code ? !again.includes(code) : !('flow-epoch' in end))) throw new Error(details || 'no sessions')
    committed = Number(end['flow-committed'] ?? committed) // a broken connection says nothing: the same again
    if ('flow-epoch' in end) epoch = { 'flow-epoch': end['flow-epoch'] }
    if (code) await sleep(200)
  }
}

module.exports = { upload }
