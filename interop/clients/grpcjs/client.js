// The grpc-js client of the matrix. The contract that the clients share is in ../README.md.
'use strict'

const fs = require('node:fs')
const path = require('node:path')
const readline = require('node:readline')
const { parseArgs } = require('node:util')
const grpc = require('@grpc/grpc-js')
const loader = require('@grpc/proto-loader')
const protobuf = require('protobufjs')
const { upload } = require('./resume.js')

const { values: flags } = parseArgs({
  options: {
    target: { type: 'string' },
    ca: { type: 'string', default: '' },
    deadline: { type: 'string', default: '0s' }, // in ms or s, as Go writes it
    resume: { type: 'boolean', default: false },
    session: { type: 'string', default: '' }
  }
})

const proto = path.join(__dirname, '../../../examples/ingest/ingestpb/ingest.proto')
const { ingest } = grpc.loadPackageDefinition(loader.loadSync(proto, { longs: Number }))
const { Status, ErrorInfo, RetryInfo } = protobuf.loadSync(path.join(__dirname, '../details.proto')).lookup('google.rpc')

const creds = flags.ca ? grpc.credentials.createSsl(fs.readFileSync(flags.ca)) : grpc.credentials.createInsecure()
const api = new ingest.v1.Ingest(flags.target, creds)

// What has not been sent yet, and what a call has sent.
const waiting = []
let ended = false
let wake = () => {}
const lines = readline.createInterface({ input: process.stdin })
lines.on('line', line => { waiting.push(JSON.parse(line)); wake() })
lines.on('close', () => { ended = true; wake() })

let cancel = () => {}
process.on('SIGINT', () => cancel())

// call is one Upload of what waits and of what comes. It prints how it ended, and resolves to that and what was sent.
function call () {
  const sent = []
  return new Promise(resolve => {
    const options = {}
    const [, n, unit] = /^([\d.]+)(ms|s)$/.exec(flags.deadline)
    if (Number(n) > 0) options.deadline = Date.now() + n * (unit === 's' ? 1000 : 1)
    let answer = { stored: 0 }
    const stream = api.Upload(new grpc.Metadata({ waitForReady: true }), options, (_, a) => { answer = a ?? answer })
    cancel = () => stream.cancel()
    let blocked = false
    let over = false
    wake = () => {
      while (!over && !blocked && waiting.length > 0) {
        const record = waiting.shift()
        sent.push(record)
        blocked = !stream.write(record)
      }
      if (!over && ended && waiting.length === 0) {
        over = true
        stream.end()
      }
    }
    stream.on('drain', () => { blocked = false; wake() })
    stream.on('status', status => {
      over = true
      wake = () => {}
      setImmediate(() => { tell(status, answer); resolve({ status, sent }) }) // after the callback
    })
    wake()
  })
}

function tell (status, answer) {
  const trailers = {}
  for (const key of Object.keys(status.metadata.getMap())) {
    trailers[key] = status.metadata.get(key).map(v => Buffer.isBuffer(v) ? v.toString('base64') : v).join(',')
  }
  console.log(JSON.stringify({
    code: status.code,
    message: status.details,
    status: trailers['grpc-status-details-bin'] ?? null,
    trailers,
    stored: Number(answer.stored)
  }))
}

// details of a status, by their type's last name.
function details (status) {
  const [packed] = status.metadata.get('grpc-status-details-bin')
  const found = {}
  for (const any of packed ? Status.decode(packed).details : []) {
    if (any.typeUrl.endsWith('/google.rpc.ErrorInfo')) found.errorInfo = ErrorInfo.decode(any.value)
    if (any.typeUrl.endsWith('/google.rpc.RetryInfo')) found.retryInfo = RetryInfo.decode(any.value)
  }
  return found
}

const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))

// answers says whether the server answers another call.
const answers = () => new Promise(resolve => {
  api.State({}).on('data', () => {}).on('error', () => resolve(false)).on('end', () => resolve(true))
})

// told is the method, which tells of each of its calls.
function told (head, callback) {
  let answer = { stored: 0 }
  const call = api.Upload(head, (error, a) => { answer = a ?? answer; callback(error, a) })
  call.on('status', status => tell(status, answer))
  return call
}

async function main () {
  if (flags.session) {
    while (!ended) await sleep(10)
    await upload(told, flags.session, waiting)
    api.close()
    return
  }
  for (;;) {
    const { status, sent } = await call()
    const { errorInfo, retryInfo } = details(status)
    if (!flags.resume || errorInfo?.reason !== 'SHUTDOWN') break
    const committed = Number(status.metadata.get('flow-committed')[0])
    waiting.unshift(...sent.slice(committed))
    await sleep(1000 * Number(retryInfo.retryDelay.seconds))
    while (!await answers()) await sleep(50)
  }
  api.close()
  lines.close()
  process.stdin.destroy()
}

main().catch(e => { console.error(e); process.exit(1) })
