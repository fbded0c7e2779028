// Calls of the server: its own methods, as JSON.

const SERVICE = "/evalrpc.v1.EvaluationService/";
const SESSION = "/v1/session";
const HEAD_BYTES = 5; // before each message of a stream: flags, and its length
const END_FLAG = 2;

// What the server answered where it did not do what was asked. `fields` names what is wrong with a request.
export class CallError extends Error {
  constructor(code, message, fields) {
    super(message);
    this.code = code;
    this.fields = fields;
  }
}

// Make a call and return its answer. Throws CallError. `signal` ends it.
export async function call(method, message = {}, signal = undefined) {
  const answer = await send(SERVICE + method, "POST", message, signal);
  return answer.json();
}

// Make a call that answers with a stream, and yield its messages. Throws CallError. `signal` ends it.
export async function* messages(method, message, signal) {
  const text = new TextEncoder().encode(JSON.stringify(message));
  const body = new Uint8Array(HEAD_BYTES + text.length);
  new DataView(body.buffer).setUint32(1, text.length);
  body.set(text, HEAD_BYTES);
  const headers = { "Content-Type": "application/connect+json" };
  const answer = await checked(await fetch(SERVICE + method, { method: "POST", headers, body, signal }));
  const reader = answer.body.getReader();
  let rest = new Uint8Array(0);
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new CallError("unavailable", "the connection has broken off", []);
    rest = joined(rest, value);
    while (rest.length >= HEAD_BYTES) {
      const end = HEAD_BYTES + new DataView(rest.buffer, rest.byteOffset).getUint32(1);
      if (rest.length < end) break;
      const content = JSON.parse(new TextDecoder().decode(rest.subarray(HEAD_BYTES, end)));
      if (rest[0] & END_FLAG) {
        if (content.error) throw errorOf(content.error);
        return;
      }
      yield content;
      rest = rest.slice(end);
    }
  }
}

function joined(first, second) {
  const both = new Uint8Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}

// Exchange a token for a session of this browser. Throws CallError.
export async function signIn(token) {
  await send(SESSION, "POST", { token });
}

// Whether there is one that can be ended: whom a proxy or a certificate signs in has none. Throws CallError.
export async function hasSession() {
  return (await (await send(SESSION, "GET")).json()).hasSession;
}

// End it.
export async function signOut() {
  await send(SESSION, "DELETE");
}

// Hand the text of a log, as it comes, to `take`. Ends with the log, or with `signal`.
export async function followLog(jobId, take, signal) {
  const answer = await checked(await fetch(`/v1/jobs/${jobId}/log?follow=true`, { signal }));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    take(value);
  }
}

export const artifactUrl = (jobId, name, attempt) =>
  `/v1/jobs/${jobId}/artifacts/${name.split("/").map(encodeURIComponent).join("/")}${attempt ? `?attempt=${attempt}` : ""}`;

async function send(path, method, message, signal) {
  const body = message === undefined ? undefined : JSON.stringify(message);
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  let answer;
  try {
    answer = await fetch(path, { method, headers, body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new CallError("unavailable", "the server can't be reached", []);
  }
  return checked(answer);
}

async function checked(answer) {
  if (answer.ok) return answer;
  let error = {};
  try {
    error = await answer.json();
  } catch {
    // no error of the server itself, but of something on the way
  }
  throw errorOf(error, answer);
}

function errorOf(error, { status = "", statusText = "" } = {}) {
  const details = (error.details || []).map((detail) => detail.debug || {});
  const fields = details.flatMap((debug) => debug.fieldViolations || []);
  return new CallError(error.code || String(status), error.message || statusText, fields);
}
