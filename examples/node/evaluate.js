#!/usr/bin/env node
// Submits an evaluation, watches it to its end across broken connections, and prints its metrics.
//
//   node evaluate.js [--harness H] --model M --tasks A,B [--num-gpus N] [--patience SECONDS]
//
// EVALRPC_ADDRESS sets the server: HOST:PORT, or https://HOST:PORT for TLS. EVALRPC_TLS_CA is a file with the certificates to
// trust, EVALRPC_TOKEN a token, which is sent with TLS only. Exits with 0 if the job completed, 1 if it failed or was
// cancelled, 2 if the call was invalid or refused, 3 if the server can't be reached.

import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs, promisify } from 'node:util'

import grpc from '@grpc/grpc-js'
import protoLoader from '@grpc/proto-loader'
import protobuf from 'protobufjs'

const PROTOS = fileURLToPath(new URL('../../protos', import.meta.url))
const ERROR_DETAILS = protobuf.loadSync(fileURLToPath(new URL('../error_details.proto', import.meta.url)))
const FIRST_BACKOFF_MS = 100
const LONGEST_BACKOFF_MS = 5000

const CHANNEL_OPTIONS = {
  // By default gRPC waits up to two minutes before it reconnects to a restarted server.
  'grpc.initial_reconnect_backoff_ms': FIRST_BACKOFF_MS,
  'grpc.max_reconnect_backoff_ms': LONGEST_BACKOFF_MS,
  // Pings detect a server that vanished silently.
  'grpc.keepalive_time_ms': 30_000
}

// Exponential backoff with full jitter, until `patience` seconds have passed without a success.
class Backoff {
  constructor (patience) {
    this.patienceMs = patience * 1000
    this.reset()
  }

  reset () {
    this.boundMs = FIRST_BACKOFF_MS
    this.deadline = null
  }

  // Waits for at least as long as the server asks for. Throws the error once `patience` is used up.
  async wait (error) {
    if (this.deadline === null) {
      this.deadline = Date.now() + this.patienceMs
      console.error(`evaluate: trying again: ${error.details}`)
    }
    if (Date.now() >= this.deadline) throw error
    await sleep(retryDelayMs(error) + Math.random() * this.boundMs)
    this.boundMs = Math.min(2 * this.boundMs, LONGEST_BACKOFF_MS)
  }
}

function connect (address) {
  const definition = protoLoader.loadSync('evalrpc/v1/evaluation_service.proto', {
    includeDirs: [PROTOS],
    enums: String,
    longs: Number, // revisions count job changes and stay far below 2^53
    defaults: true
  })
  const { EvaluationService } = grpc.loadPackageDefinition(definition).evalrpc.v1
  const credentials = address.startsWith('https://') ? tlsCredentials() : grpc.credentials.createInsecure()
  return new EvaluationService(address.replace('https://', ''), credentials, CHANNEL_OPTIONS)
}

function tlsCredentials () {
  const { EVALRPC_TLS_CA: ca, EVALRPC_TOKEN: token } = process.env
  const credentials = grpc.credentials.createSsl(ca ? readFileSync(ca) : null)
  if (!token) return credentials
  const metadata = new grpc.Metadata()
  metadata.set('authorization', `Bearer ${token}`)
  const bearer = grpc.credentials.createFromMetadataGenerator((_, callback) => callback(null, metadata))
  return grpc.credentials.combineChannelCredentials(credentials, bearer)
}

// Returns the finished job.
async function evaluate (client, submission, patience) {
  const submitJob = promisify(client.submitJob).bind(client)
  const backoff = new Backoff(patience)
  let job = null
  let revision = 0 // all changes up to here are printed

  for (;;) {
    try {
      if (job === null) {
        job = await submitJob(submission)
        revision = job.revision
        console.error(`job ${job.jobId}`)
        printStatus(job)
      }
      for await (const event of client.watchJob({ jobId: job.jobId, afterRevision: revision })) {
        backoff.reset()
        if (event.job?.revision > revision) printStatus(event.job)
        revision = event.revision
        if (event.terminal) return event.job
      }
    } catch (error) {
      if (!(error.metadata instanceof grpc.Metadata) || isFinal(error)) throw error
      await backoff.wait(error)
    }
  }
}

// Returns the first detail of this kind that came with the error; undefined if there is none.
function detailOf (error, kind) {
  const [bytes] = error.metadata.get('grpc-status-details-bin')
  const details = bytes ? ERROR_DETAILS.lookupType('google.rpc.Status').decode(bytes).details : []
  const detail = details.find(({ type_url: url }) => url.endsWith(`/${kind}`))
  return detail && ERROR_DETAILS.lookupType(kind).decode(detail.value)
}

// Returns the server's own reason. Undefined: something between here and the server failed.
function reasonOf (error) {
  const info = detailOf(error, 'google.rpc.ErrorInfo')
  return info?.domain === 'evalrpc' ? info.reason : undefined
}

// Whether the server itself refused the call for good; whatever else ends a call is worth another try.
function isFinal (error) {
  return reasonOf(error) !== undefined && error.code !== grpc.status.UNAVAILABLE
}

function retryDelayMs (error) {
  const { seconds = 0, nanos = 0 } = detailOf(error, 'google.rpc.RetryInfo')?.retryDelay ?? {}
  return Number(seconds) * 1000 + nanos / 1e6
}

function printStatus (job) {
  console.log(`${job.revision} ${statusName(job)}`)
}

function printOutcome (job) {
  if (job.error) console.error(`evaluate: ${statusName(job)} ${job.error.reason}: ${job.error.message}`)
  for (const { metrics } of Object.values(job.results)) {
    for (const { task, metric, filter, value, standardError } of metrics) {
      const name = filter ? `${metric},${filter}` : metric
      console.log(`${task} ${name} ${value.toFixed(4)} ${standardError?.toFixed(4) ?? '-'}`)
    }
  }
}

// A status that this program does not know yet is shown by its number.
function statusName (job) {
  return String(job.status).replace('JOB_STATUS_', '')
}

function parseFlags () {
  const { values } = parseArgs({
    options: {
      harness: { type: 'string' },
      model: { type: 'string' },
      tasks: { type: 'string' },
      'num-gpus': { type: 'string' },
      patience: { type: 'string', default: '60' }
    }
  })
  const request = {
    harness: values.harness,
    model: values.model,
    tasks: values.tasks?.split(','),
    ...(values['num-gpus'] !== undefined && { numGpus: number(values['num-gpus']) })
  }
  return { request, patience: number(values.patience) }
}

function number (text) {
  const value = Number(text)
  if (Number.isNaN(value)) throw new TypeError(`${text} is not a number`)
  return value
}

async function main () {
  let flags, client
  try {
    flags = parseFlags()
    client = connect(process.env.EVALRPC_ADDRESS || '127.0.0.1:50051')
  } catch (error) {
    console.error(`evaluate: ${error.message}`)
    return 2
  }
  try {
    // The id makes it safe to resubmit if the response is lost.
    const submission = { request: flags.request, requestId: randomUUID() }
    const job = await evaluate(client, submission, flags.patience)
    printOutcome(job)
    return job.status === 'JOB_STATUS_COMPLETED' ? 0 : 1
  } catch (error) {
    if (!(error.metadata instanceof grpc.Metadata)) throw error
    console.error(`evaluate: ${reasonOf(error) ?? 'no server'}: ${error.details}`)
    return isFinal(error) ? 2 : 3
  } finally {
    client.close()
  }
}

process.exitCode = await main()
