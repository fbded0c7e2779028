// One job: what it is, its attempts, its results, its log as it grows, and its files.
import { html, useEffect, useRef, useState } from "../html.js";
import { artifactUrl, call, followLog } from "../api.js";
import { begin, listen } from "../events.js";
import { go } from "../app.js";
import { Failure, ProgressBar, Status, Table, Value, useLoaded, useTicks } from "../parts.js";
import { between, bytes, isLive, labelsOf, modelOf, ownerOf, shortId, time } from "../text.js";

const MAX_LOG_CHARACTERS = 200_000;

export function JobView({ parts: [jobId], caller }) {
  const [job, setJob] = useState(null);
  const [, error, again] = useLoaded(async (signal) => {
    await begin();
    setJob(await call("GetJob", { jobId }, signal));
  }, [jobId]);
  useTicks(5);
  useEffect(() => listen((event) => {
    if (!event.job || event.job.jobId !== jobId) return;
    if (event.type === "JOB_EVENT_TYPE_DELETED") go("/", true);
    else if (event.type === "JOB_EVENT_TYPE_PROGRESS") setJob((old) => old && { ...old, progress: event.job.progress, waitReason: event.job.waitReason });
    else again(); // the events are without metrics
  }), [jobId]);
  if (!job) return html`<h1>Job <code>${shortId(jobId)}</code></h1><${Failure} error=${error} />`;
  const request = job.request || {};
  return html`
    <h1>Job <code>${shortId(jobId)}</code> <${Status} job=${job} /></h1>
    <${Failure} error=${error} />
    <p><${ProgressBar} job=${job} /> ${job.waitReason && html`<span class="why">${job.waitReason}</span>`}</p>
    ${job.error && html`<div class="failure" role="alert"><strong>${job.error.reason}</strong> ${job.error.message}
      ${job.error.logTail && html`<pre>${job.error.logTail.join("\n")}</pre>`}</div>`}
    ${(job.warnings || []).map((warning) => html`<p class="warning">${warning}</p>`)}
    <${Actions} job=${job} caller=${caller} />
    <${Facts} facts=${[
      ["id", jobId], ["model", modelOf(request)], ["harness", request.harness], ["tasks", (request.tasks || []).join(", ")],
      ["owner", ownerOf(job)], ["labels", labelsOf(job).join(", ")], ["priority", job.priority || ""],
      ["created", time(job.createdAt)], ["waited", between(job.createdAt, job.startedAt)], ["ran", between(job.startedAt, job.completedAt)],
      ["suite run", job.suiteRunId && html`<a href=${`/suites/${job.suiteRunId}`}>${shortId(job.suiteRunId)}</a>`],
      ["shares the run of", job.cachedFrom && html`<a href=${`/jobs/${job.cachedFrom}`}>job ${shortId(job.cachedFrom)}</a>`],
    ]} />
    <${Results} job=${job} />
    <${Attempts} job=${job} />
    <${Log} job=${job} />
    <${Files} job=${job} />
    <details><summary>The request</summary><pre>${JSON.stringify(request, null, 2)}</pre></details>`;
}

const Facts = ({ facts }) => html`<dl class="facts">
  ${facts.filter(([, value]) => value).map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}
</dl>`;

function Actions({ job, caller }) {
  const [error, setError] = useState(null);
  const mayChange = !caller || caller.role !== "CALLER_ROLE_VIEWER";
  const act = (method) => call(method, { jobId: job.jobId }).catch(setError);
  const hasSamples = Object.keys(job.results || {}).length > 0;
  return html`<p class="actions">
    ${hasSamples && html`<a class="button" href=${`/jobs/${job.jobId}/samples`}>Samples</a>`}
    ${hasSamples && html`<a class="button" href=${`/compare?candidate=${job.jobId}`}>Compare</a>`}
    ${mayChange && html`<a class="button" href=${`/submit?copy=${job.jobId}`}>Submit a copy</a>`}
    ${mayChange && isLive(job) && html`<button type="button" disabled=${Boolean(job.cancelRequestedAt)} onClick=${() => act("CancelJob")}>
      ${job.cancelRequestedAt ? "Being cancelled" : "Cancel"}</button>`}
    <${Failure} error=${error} />
  </p>`;
}

function Results({ job }) {
  return Object.entries(job.results || {}).map(([model, result]) => html`<section>
    <h2>Results of ${model}</h2>
    <${Table} caption=${`Metrics of ${model}`} columns=${["task", "metric", "filter", "value", "samples"]}>
      ${(result.metrics || []).map((metric) => html`<tr class=${metric.isGroup ? "group" : ""}>
        <td>${metric.task}</td>
        <td>${metric.metric}${metric.higherIsBetter === undefined ? "" : metric.higherIsBetter ? " ↑" : " ↓"}</td>
        <td>${metric.filter}</td><td><${Value} value=${metric.value} error=${metric.standardError} /></td><td>${metric.sampleCount}</td>
      </tr>`)}
    <//>
    ${result.metricsTruncated && html`<p class="muted">These are some of ${result.metricCount}; ListMetrics has all.</p>`}
  </section>`);
}

const Attempts = ({ job }) => (job.attempts || []).length > 0 && html`<section>
  <h2>Attempts</h2>
  <ol class="timeline">${job.attempts.map((attempt) => html`<li class=${attempt.error ? "failed" : attempt.completedAt ? "completed" : "running"}>
    <b>${attempt.number}</b> ${time(attempt.startedAt)}, ${between(attempt.startedAt, attempt.completedAt)}
    ${attempt.node && attempt.node !== "local" && html` on ${attempt.node}`}${(attempt.gpus || []).length > 0 && html`, GPUs ${attempt.gpus.join(", ")}`}
    ${attempt.warm && html`, warm`}${attempt.engineId && html`, engine ${attempt.engineId}`}
    ${attempt.error && html`<div class="why">${attempt.error.reason} ${attempt.error.message}</div>`}
  </li>`)}</ol>
</section>`;

function Log({ job }) {
  const [text, setText] = useState(null);
  const [error, setError] = useState(null);
  const box = useRef(null);
  const isOpen = text !== null;
  useEffect(() => {
    if (!isOpen) return undefined;
    const controller = new AbortController();
    const add = (more) => setText((old) => (old + more).slice(-MAX_LOG_CHARACTERS));
    followLog(job.jobId, add, controller.signal).catch((failed) => failed.name !== "AbortError" && setError(failed));
    return () => controller.abort();
  }, [isOpen, job.jobId]);
  useEffect(() => {
    const { current } = box;
    if (current && current.scrollHeight - current.scrollTop - current.clientHeight < 200) current.scrollTop = current.scrollHeight;
  }, [text]);
  return html`<section>
    <h2>Log</h2>
    <p class="actions">
      ${!isOpen && html`<button type="button" onClick=${() => setText("")}>${isLive(job) ? "Show, as it grows" : "Show"}</button>`}
      <a href=${`/v1/jobs/${job.jobId}/log`} download>Download</a>
    </p>
    <${Failure} error=${error} />
    ${isOpen && html`<pre class="log" ref=${box} tabindex="0" aria-label="Log">${text}</pre>`}
  </section>`;
}

function Files({ job }) {
  const [token, setToken] = useState("");
  const [page, error] = useLoaded(
    (signal) => call("ListArtifacts", { jobId: job.jobId, pageSize: 100, pageToken: token }, signal), [job.jobId, job.status, token]);
  const files = (page && page.artifacts) || [];
  return html`<section>
    <h2>Files</h2>
    <${Failure} error=${error} />
    ${files.length > 0 ? html`<${Table} caption="Files" columns=${["name", "size", "changed"]}>
      ${files.map((file) => html`<tr>
        <td><a href=${artifactUrl(job.jobId, file.name)} download>${file.name}</a></td><td>${bytes(file.sizeBytes || 0)}</td><td>${time(file.modifiedAt)}</td>
      </tr>`)}
    <//>` : html`<p class="muted">${isLive(job) ? "None yet." : "None."}</p>`}
    ${page && page.nextPageToken && html`<button type="button" onClick=${() => setToken(page.nextPageToken)}>More</button>`}
  </section>`;
}
