// How values are written for people.

export const STATUSES = ["QUEUED", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"];

// The status that a URL names, in capitals or not; none: empty.
export const statusNamed = (name) => STATUSES.find((each) => each === (name || "").toUpperCase()) || "";

export const statusOf = (job) => (job.status || "").replace("JOB_STATUS_", "");

export const isLive = (job) => ["QUEUED", "RUNNING"].includes(statusOf(job));

export const shortId = (id) => id.slice(0, 8);

export const modelOf = (request = {}) =>
  argument(request.modelArgs) || request.model || (request.servedModel && request.servedModel.model) || "";

const argument = (args = {}) => args.pretrained || args.model_path || args.model || "";

export const ownerOf = (job) => job.owner || "nobody";

export function time(text) {
  return text ? new Date(text).toLocaleString(undefined, { dateStyle: "short", timeStyle: "medium" }) : "";
}

export function seconds(count) {
  if (count < 0 || !Number.isFinite(count)) return "";
  if (count < 60) return `${count < 10 ? count.toFixed(1) : Math.round(count)} s`;
  const minutes = Math.floor(count / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(count % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function between(start, end) {
  return start ? seconds((new Date(end || Date.now()) - new Date(start)) / 1000) : "";
}

export function number(value) {
  if (value === undefined || value === null || value === "") return "";
  return typeof value === "number" ? Number(value.toPrecision(4)).toString() : String(value);
}

export function bytes(count) {
  let value = Number(count);
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024 || unit === "GiB") return `${unit === "B" ? value : value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
  return "";
}

export const phaseOf = (progress = {}) => (progress.phase || "").replace("PHASE_", "").toLowerCase();

export function labelsOf(job) {
  return Object.entries(job.labels || {}).map(([name, value]) => `${name}=${value}`).sort();
}
