#!/usr/bin/env node
// Submits an evaluation, watches it to its end across broken connections, and prints its metrics.
//
//   node evaluate.js --harness H --model M --tasks A,B [--num-gpus N] [--patience SECONDS]
//
// EVALRPC_ADDRESS sets the server. Exits with 0 if the job completed, 1 if it failed or was cancelled, 2 if the call was
// invalid or refused, 3 if the server can't be reached.

import { randomUUID } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs, promisify } from 'node:util'

import grpc from '@grpc/grpc-js'
import protoLoader from '@grpc/proto-loader'
import protobuf from 'protobufjs'

const PROTOS = fileURLToPath(new URL('../../protos', import.meta.url))
const FIRST_BACKOFF_MS = 100
const LONGEST_BACKOFF_MS = 5000

const CHANNEL_OPTIONS = {
  // By default gRPC waits up to two minutes before it reconnects to a restarted server.
  'grpc.initial_reconnect_backoff_ms': FIRST_BACKOFF_MS,
  'grpc.max_reconnect_backoff_ms': LONGEST_BACKOFF_MS,
  // Detects a server that vanished silently, even while a job sends no events.
  'grpc.keepalive_time_ms': 30_000
}

// The parts of google.rpc.Status, which carries error details, that are used here.
const ERROR_DETAILS = protobuf.parse(`
  syntax = "proto3";
  message Status { repeated Any details = 3; }
  message Any { string type_url = 1; bytes value = 2; }
  message ErrorInfo { string reason = 1; }
`).root

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

  // Throws the error once `patience` is used up.
  async wait (error) {
    if (this.deadline === null) {
      this.deadline = Date.now() + this.patienceMs
      console.error(`evaluate: no server, trying again: ${error.details}`)
    }
    if (Date.now() >= this.deadline) throw error
    await sleep(Math.random() * this.boundMs)
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
  return new EvaluationService(address, grpc.credentials.createInsecure(), CHANNEL_OPTIONS)
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
      if (error.code !== grpc.status.UNAVAILABLE) throw error
      await backoff.wait(error)
    }
  }
}

function printStatus (job) {
  console.log(`${job.revision} ${statusName(job)}`)
}

function printOutcome (job) {
  if (job.error) console.error(`evaluate: ${statusName(job)} ${job.error.reason}: ${job.error.message}`)
  for (const { metrics } of Object.values(job.results)) {
    for (const { task, metric, filter, value, stderr } of metrics) {
      const name = filter ? `${metric},${filter}` : metric
      console.log(`${task} ${name} ${value.toFixed(4)} ${stderr?.toFixed(4) ?? '-'}`)
    }
  }
}

function statusName (job) {
  return String(job.status).replace('JOB_STATUS_', '')
}

function errorLine (error) {
  const [bytes] = error.metadata.get('grpc-status-details-bin')
  const details = bytes ? ERROR_DETAILS.lookupType('Status').decode(bytes).details : []
  const info = details.find((detail) => detail.typeUrl.endsWith('/google.rpc.ErrorInfo'))
  const reason = info ? ` ${ERROR_DETAILS.lookupType('ErrorInfo').decode(info.value).reason}` : ''
  return `evaluate: ${grpc.status[error.code]}${reason}: ${error.details}`
}

function parseFlags () {
  const { values } = parseArgs({
    options: {
      harness: { type: 'string' },
      model: { type: 'string' },
      tasks: { type: 'string' },
      'num-gpus': { type: 'string', default: '1' },
      patience: { type: 'string', default: '60' }
    }
  })
  const request = {
    harness: values.harness,
    model: values.model,
    tasks: values.tasks?.split(','),
    numGpus: number(values['num-gpus'])
  }
  return { request, patience: number(values.patience) }
}

function number (text) {
  const value = Number(text)
  if (Number.isNaN(value)) throw new TypeError(`${text} is not a number`)
  return value
}

async function main () {
  let flags
  try {
    flags = parseFlags()
  } catch (error) {
    console.error(`evaluate: ${error.message}`)
    return 2
  }
  const client = connect(process.env.EVALRPC_ADDRESS || '127.0.0.1:50051')
  try {
    // The id makes it safe to resubmit if the response is lost.
    const submission = { request: flags.request, requestId: randomUUID() }
    const job = await evaluate(client, submission, flags.patience)
    printOutcome(job)
    return job.status === 'JOB_STATUS_COMPLETED' ? 0 : 1
  } catch (error) {
    if (!(error.metadata instanceof grpc.Metadata)) throw error
    console.error(errorLine(error))
    return error.code === grpc.status.UNAVAILABLE ? 3 : 2
  } finally {
    client.close()
  }
}

process.exitCode = await main()
