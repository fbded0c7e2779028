// All jobs, the newest first, with what waits and why, and who holds which GPU.
import { html, useEffect, useState } from "../html.js";
import { call } from "../api.js";
import { begin, listen } from "../events.js";
import { go } from "../app.js";
import { Failure, ProgressBar, Status, Table, useLoaded, useTicks } from "../parts.js";
import { STATUSES, between, isLive, labelsOf, modelOf, ownerOf, shortId, statusNamed, statusOf, time } from "../text.js";

const PAGE_SIZE = 50;

export function QueueView({ query }) {
  const status = statusNamed(query.get("status"));
  const labels = query.get("labels") || "";
  const pageToken = query.get("page") || "";
  const [jobs, setJobs] = useState(null);
  const [chosen, setChosen] = useState([]);
  useTicks(5);

  const filter = { labelSelector: labels, statuses: status ? [`JOB_STATUS_${status}`] : [] };
  const [page, error] = useLoaded(async (signal) => {
    const request = { filter, pageSize: PAGE_SIZE, pageToken, view: "JOB_VIEW_BASIC" };
    const listed = await call("ListJobs", request, signal);
    begin(listed.revision);
    setJobs(listed.jobs || []);
    return listed;
  }, [status, labels, pageToken]);
  const [queue, queueError, lookAgain] = useLoaded((signal) => call("GetQueue", {}, signal), []);
  const [listedEngines] = useLoaded((signal) => call("ListEngines", {}, signal), []);

  useEffect(() => {
    let timer = 0;
    const end = listen((event) => {
      if (!event.job || !event.job.jobId) return;
      setJobs((old) => old && merged(old, event, { isFirstPage: !pageToken && !labels, status }));
      if (event.type !== "JOB_EVENT_TYPE_PROGRESS" && !timer) {
        timer = setTimeout(() => { timer = 0; lookAgain(); }, 500);
      }
    });
    return () => { end(); clearTimeout(timer); };
  }, [status, labels, pageToken]);

  const choose = (jobId) => setChosen((old) => (old.includes(jobId) ? old.filter((id) => id !== jobId) : [...old, jobId].slice(-2)));
  return html`
    <h1>Jobs</h1>
    <${Failure} error=${error || queueError} />
    ${queue && html`<${Overview} queue=${queue} engines=${(listedEngines && listedEngines.engines) || []} />`}
    <form class="filters" onSubmit=${(event) => { event.preventDefault(); narrow(new FormData(event.target)); }}>
      <label>Status
        <select name="status" value=${status} onChange=${(event) => event.target.form.requestSubmit()}>
          <option value="">all</option>
          ${STATUSES.map((name) => html`<option value=${name} selected=${name === status}>${name.toLowerCase()}</option>`)}
        </select>
      </label>
      <label>Labels <input name="labels" value=${labels} placeholder="team=blue,step!=100" spellcheck=${false} /></label>
      <button>Filter</button>
      ${chosen.length === 2 && html`<a class="button" href=${`/compare?baseline=${chosen[0]}&candidate=${chosen[1]}`}>Compare the two chosen</a>`}
    </form>
    ${jobs && html`<${Table} caption="Jobs" stacks columns=${["", "job", "status", "model", "tasks", "owner", "labels", "created", "took"]}>
      ${jobs.map((job) => html`<${Row} key=${job.jobId} job=${job} isChosen=${chosen.includes(job.jobId)} choose=${choose} />`)}
    <//>`}
    ${jobs && !jobs.length && html`<p class="muted">No jobs here. <a href="/submit">Submit one</a></p>`}
    <nav class="pages" aria-label="Pages">
      ${pageToken && html`<a href=${address({ status, labels })}>Newest</a>`}
      ${page && page.nextPageToken && html`<a href=${address({ status, labels, page: page.nextPageToken })}>Older</a>`}
    </nav>`;
}

function Row({ job, isChosen, choose }) {
  const why = isLive(job) ? job.waitReason : job.error && job.error.message;
  return html`<tr>
    <td><input type="checkbox" aria-label=${`Choose job ${shortId(job.jobId)}`} checked=${isChosen} onChange=${() => choose(job.jobId)} /></td>
    <td><a href=${`/jobs/${job.jobId}`}><code>${shortId(job.jobId)}</code></a></td>
    <td><${Status} job=${job} /> <${ProgressBar} job=${job} />${why && html`<div class="why">${why}</div>`}</td>
    <td class="long">${modelOf(job.request)}</td>
    <td class="long">${(job.request.tasks || []).join(", ")}</td>
    <td>${ownerOf(job)}</td>
    <td class="long">${labelsOf(job).join(", ")}</td>
    <td>${time(job.createdAt)}</td>
    <td>${between(job.startedAt, job.completedAt)}</td>
  </tr>`;
}

function Overview({ queue, engines }) {
  const gpus = queue.gpus || [];
  const engineNames = Object.fromEntries(engines.map((engine) => [engine.engineId, `${engine.engine} ${engine.model}`]));
  return html`<section class="overview" aria-label="What the server does">
    <ul class="figures">
      <li><b>${queue.runningCount || 0}</b> running</li>
      <li><b>${queue.queuedCount || 0}</b> queued</li>
      <li>${gpus.length ? html`<b>${queue.freeGpuCount || 0}</b> of ${gpus.length} GPUs free` : "no GPUs"}</li>
      ${queue.paused && html`<li class="warning">the queue is paused</li>`}
    </ul>
    ${gpus.length > 0 && html`<ul class="gpus" aria-label="GPUs">${gpus.map((gpu) => html`<li class=${gpuState(gpu)} title=${gpu.quarantineReason || ""}>
      <b>${gpu.node && gpu.node !== "local" ? "" : "GPU "}${gpu.id}</b>
      <span>${gpu.jobId ? html`<a href=${`/jobs/${gpu.jobId}`}>job ${shortId(gpu.jobId)}</a>` : engineNames[gpu.engineId] || gpuState(gpu)}</span>
    </li>`)}</ul>`}
    ${(queue.owners || []).length > 1 && html`<${Table} caption="Owners" columns=${["owner", "runs", "waits", "GPUs", "recent use"]}>
      ${queue.owners.map((each) => html`<tr>
        <td>${each.owner || "nobody"}</td><td>${each.runningCount || 0}</td><td>${each.queuedCount || 0}</td>
        <td>${each.heldGpuCount || 0}${each.maxGpus !== undefined ? ` of ${each.maxGpus}` : ""}</td>
        <td>${((each.usedGpuSeconds || 0) / 3600).toFixed(1)} GPU h</td>
      </tr>`)}
    <//>`}
  </section>`;
}

function gpuState(gpu) {
  if (gpu.quarantineReason) return "quarantined";
  if (gpu.cordoned) return "cordoned";
  return gpu.held || gpu.jobId || gpu.engineId ? "held" : "free";
}

function merged(jobs, event, { isFirstPage, status }) {
  const { job } = event;
  const place = jobs.findIndex((each) => each.jobId === job.jobId);
  const belongs = event.type !== "JOB_EVENT_TYPE_DELETED" && (!status || statusOf(job) === status);
  if (place >= 0) return belongs ? jobs.with(place, job) : jobs.toSpliced(place, 1);
  const isNew = belongs && isFirstPage && (!jobs.length || job.createdAt >= jobs[0].createdAt);
  return isNew ? [job, ...jobs].slice(0, PAGE_SIZE) : jobs;
}

const narrow = (form) => go(address(Object.fromEntries(form)));

function address(parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value);
  return given.length ? `/?${new URLSearchParams(given)}` : "/";
}
