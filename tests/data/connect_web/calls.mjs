// Calls a server with the official client for browsers: node calls.mjs DESCRIPTORS URL calls json|binary JOB_ID
//                                                        node calls.mjs DESCRIPTORS URL watch json|binary JOB_ID
// Prints an object per line: of each call its outcome; or each event of all jobs, over as many streams as it takes, until JOB_ID ends.
import { readFileSync } from "node:fs";
import { createFileRegistry, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";

const [descriptors, url, mode, form, jobId] = process.argv.slice(2);
const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(descriptors)));
const service = registry.getService("evalrpc.v1.EvaluationService");
const client = createClient(service, createConnectTransport({ baseUrl: url, useBinaryFormat: form === "binary" }));
const BOOKMARK = 4;
const print = (value) => console.log(JSON.stringify(value, (_, each) => (typeof each === "bigint" ? Number(each) : each)));

async function makeEveryCall() {
  const names = service.methods.filter((method) => method.localName !== "deleteJob").map((method) => method.localName);
  for (const name of [...names, "deleteJob"]) {
    const method = service.method[name];
    const message = method.input.fields.some((field) => field.localName === "jobId") ? { jobId } : {};
    try {
      const count = method.methodKind === "unary" ? Number(Boolean(await client[name](message))) : await countOf(name, message);
      print({ method: method.name, count });
    } catch (error) {
      const { code, rawMessage } = ConnectError.from(error);
      print({ method: method.name, code: Code[code], message: rawMessage });
    }
  }
}

async function countOf(name, message) {
  const controller = new AbortController();
  let count = 0;
  for await (const answer of client[name](message, { signal: controller.signal })) {
    count += 1;
    if (name === "watchJobs" && answer.type === BOOKMARK) break; // it goes on for ever
  }
  controller.abort();
  return count;
}

async function watch() {
  let afterRevision = 0n;
  for (;;) {
    try {
      for await (const event of client.watchJobs({ afterRevision })) {
        if (event.type === BOOKMARK || event.revision) afterRevision = event.revision;
        print({ type: event.type, revision: event.revision, jobId: event.job?.jobId || "", terminal: event.terminal });
        if (event.terminal && event.job.jobId === jobId) return;
      }
    } catch (error) {
      print({ broken: Code[ConnectError.from(error).code] });
      await new Promise((resolve) => { setTimeout(resolve, 200); });
    }
  }
}

await (mode === "calls" ? makeEveryCall() : watch());
