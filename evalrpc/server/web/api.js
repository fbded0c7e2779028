// Calls of the server: its own methods, as JSON.

const SERVICE = "/evalrpc.v1.EvaluationService/";
const SESSION = "/v1/session";

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

// Exchange a token for a session of this browser. Throws CallError.
export async function signIn(token) {
  await send(SESSION, "POST", { token });
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
  const details = (error.details || []).map((detail) => detail.debug || {});
  const fields = details.flatMap((debug) => debug.fieldViolations || []);
  throw new CallError(error.code || String(answer.status), error.message || answer.statusText, fields);
}
