// Submits an evaluation, watches it to its end across broken connections, and prints its metrics.
//
//   node build/evaluate.js [--harness H] --model M --tasks A,B [--num-gpus N] [--patience SECONDS]
//
// EVALRPC_ADDRESS sets the server: HOST:PORT, or https://HOST:PORT for TLS. EVALRPC_TLS_CA is a file with the certificates to
// trust, EVALRPC_TOKEN a token, which is sent with TLS only. Exits with 0 if the job completed, 1 if it failed or was
// cancelled, 2 if the call was invalid or refused, 3 if the server can't be reached.

import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'

import { create } from '@bufbuild/protobuf'
import { durationMs } from '@bufbuild/protobuf/wkt'
import { type Client, Code, ConnectError, createClient, type Interceptor } from '@connectrpc/connect'
import { createGrpcTransport, Http2SessionManager } from '@connectrpc/connect-node'

import { ErrorInfoSchema, RetryInfoSchema } from './gen/error_details_pb.js'
import { EvaluationService } from './gen/evalrpc/v1/evaluation_service_pb.js'
import { type JobInfo, JobStatus, type SubmitJobRequest, SubmitJobRequestSchema } from './gen/evalrpc/v1/jobs_pb.js'

const FIRST_BACKOFF_MS = 100
const LONGEST_BACKOFF_MS = 5000

// Exponential backoff with full jitter, until `patience` seconds have passed without a success.
class Backoff {
  readonly #patienceMs: number
  #boundMs = FIRST_BACKOFF_MS
  #deadline: number | null = null

  constructor (patience: number) {
    this.#patienceMs = patience * 1000
  }

  reset (): void {
    this.#boundMs = FIRST_BACKOFF_MS
    this.#deadline = null
  }

  // Waits for at least as long as the server asks for. Throws the error once `patience` is used up.
  async wait (error: ConnectError): Promise<void> {
    if (this.#deadline === null) {
      this.#deadline = Date.now() + this.#patienceMs
      console.error(`evaluate: trying again: ${error.rawMessage}`)
    }
    if (Date.now() >= this.#deadline) throw error
    await sleep(retryDelayMs(error) + Math.random() * this.#boundMs)
    this.#boundMs = Math.min(2 * this.#boundMs, LONGEST_BACKOFF_MS)
  }
}

function connect (): { server: Client<typeof EvaluationService>, sessionManager: Http2SessionManager } {
  const { EVALRPC_ADDRESS: address = '127.0.0.1:50051', EVALRPC_TLS_CA: ca, EVALRPC_TOKEN: token } = process.env
  const usesTls = address.startsWith('https://')
  const baseUrl = usesTls ? address : `http://${address}`
  const signIn: Interceptor = (next) => async (request) => {
    if (usesTls && token) request.header.set('authorization', `Bearer ${token}`)
    return await next(request)
  }
  // Pings detect a server that vanished silently.
  const sessionManager = new Http2SessionManager(baseUrl, { pingIntervalMs: 30_000 }, ca ? { ca: readFileSync(ca) } : {})
  const transport = createGrpcTransport({ baseUrl, sessionManager, interceptors: [signIn] })
  return { server: createClient(EvaluationService, transport), sessionManager }
}

// Returns the finished job.
async function evaluate (
  server: Client<typeof EvaluationService>, submission: SubmitJobRequest, patience: number
): Promise<JobInfo> {
  const backoff = new Backoff(patience)
  let job: JobInfo | undefined
  let revision = 0n // all changes up to here are printed

  for (;;) {
    try {
      if (job === undefined) {
        job = await server.submitJob(submission)
        revision = job.revision
        console.error(`job ${job.jobId}`)
        printStatus(job)
      }
      for await (const event of server.watchJob({ jobId: job.jobId, afterRevision: revision })) {
        backoff.reset()
        if (event.job !== undefined && event.job.revision > revision) printStatus(event.job)
        revision = event.revision
        if (event.terminal && event.job !== undefined) return event.job
      }
    } catch (caught) {
      const error = ConnectError.from(caught)
      if (isFinal(error)) throw error
      await backoff.wait(error)
    }
  }
}

// Returns the server's own reason. Undefined: something between here and the server failed.
function reasonOf (error: ConnectError): string | undefined {
  return error.findDetails(ErrorInfoSchema).find(({ domain }) => domain === 'evalrpc')?.reason
}

// Whether the server itself refused the call for good; whatever else ends a call is worth another try.
function isFinal (error: ConnectError): boolean {
  return reasonOf(error) !== undefined && error.code !== Code.Unavailable
}

function retryDelayMs (error: ConnectError): number {
  const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay
  return delay === undefined ? 0 : durationMs(delay)
}

function printStatus (job: JobInfo): void {
  console.log(`${job.revision} ${statusName(job)}`)
}

function printOutcome (job: JobInfo): void {
  if (job.error !== undefined) console.error(`evaluate: ${statusName(job)} ${job.error.reason}: ${job.error.message}`)
  for (const { metrics } of Object.values(job.results)) {
    for (const { task, metric, filter, value, standardError } of metrics) {
      const name = filter === '' ? metric : `${metric},${filter}`
      console.log(`${task} ${name} ${value?.toFixed(4) ?? '-'} ${standardError?.toFixed(4) ?? '-'}`)
    }
  }
}

// A status that this program does not know yet is shown by its number.
function statusName (job: JobInfo): string {
  return JobStatus[job.status] ?? String(job.status)
}

function parseFlags (): { submission: SubmitJobRequest, patience: number } {
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
    ...(values.harness !== undefined && { harness: values.harness }),
    ...(values.model !== undefined && { model: values.model }),
    ...(values.tasks !== undefined && { tasks: values.tasks.split(',') }),
    ...(values['num-gpus'] !== undefined && { numGpus: number(values['num-gpus']) })
  }
  // The id makes it safe to resubmit if the response is lost.
  const submission = create(SubmitJobRequestSchema, { request, requestId: randomUUID() })
  return { submission, patience: number(values.patience) }
}

function number (text: string): number {
  const value = Number(text)
  if (Number.isNaN(value)) throw new TypeError(`${text} is not a number`)
  return value
}

async function main (): Promise<number> {
  let flags, connection
  try {
    flags = parseFlags()
    connection = connect()
  } catch (error) {
    console.error(`evaluate: ${error instanceof Error ? error.message : String(error)}`)
    return 2
  }
  const { server, sessionManager } = connection
  try {
    const job = await evaluate(server, flags.submission, flags.patience)
    printOutcome(job)
    return job.status === JobStatus.COMPLETED ? 0 : 1
  } catch (caught) {
    const error = ConnectError.from(caught)
    console.error(`evaluate: ${reasonOf(error) ?? 'no server'}: ${error.rawMessage}`)
    return isFinal(error) ? 2 : 3
  } finally {
    sessionManager.abort()
  }
}

process.exitCode = await main()
