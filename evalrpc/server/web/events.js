// The changes of all jobs, by one stream per browser however many tabs it has: the tab that holds a lock has the stream, and hands
// on to all others what it hears. When it is closed, another one goes on behind the last revision.

import { call } from "./api.js";

const NAME = "evalrpc-events";

const channel = new BroadcastChannel(NAME);
const listeners = new Set();
let revision = "";
let isOnline = true;

// Call `take` with each event, {type, job, revision}; and with {type: "ONLINE"} or {type: "OFFLINE"} as the stream comes and goes.
// Returns what ends that.
export function listen(take) {
  listeners.add(take);
  take({ type: isOnline ? "ONLINE" : "OFFLINE" });
  return () => listeners.delete(take);
}

// Begin, unless it has: behind this revision, or that of now. What is read after that misses nothing.
export async function begin(afterRevision) {
  if (revision) return;
  revision = afterRevision || (await call("GetServerInfo")).headRevision || "0";
  navigator.locks.request(NAME, () => new Promise(() => lead()));
}

channel.onmessage = (message) => hand(message.data);

function lead() {
  const parameters = new URLSearchParams({ view: "JOB_VIEW_BASIC", skip_snapshots: true, after_revision: revision });
  const source = new EventSource(`/v1/events?${parameters}`);
  source.onopen = () => tell({ type: "ONLINE" });
  source.onmessage = (message) => tell(JSON.parse(message.data));
  source.addEventListener("failure", () => tell({ type: "OFFLINE" }));
  source.onerror = () => {
    tell({ type: "OFFLINE" });
    if (source.readyState !== EventSource.CLOSED) return; // it comes back by itself
    setTimeout(lead, 5000);
  };
}

function tell(event) {
  hand(event);
  channel.postMessage(event);
}

function hand(event) {
  if (event.revision) revision = event.revision;
  if (event.type === "ONLINE" || event.type === "OFFLINE") isOnline = event.type === "ONLINE";
  for (const take of listeners) take(event);
}
