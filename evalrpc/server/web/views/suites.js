// Runs of suites: all of them, and one with its decision, what was found out about each metric, and its jobs.
import { html, useEffect } from "../html.js";
import { call } from "../api.js";
import { begin, listen } from "../events.js";
import { go } from "../app.js";
import { Failure, Status, Table, Value, useLoaded } from "../parts.js";
import { STATUSES, between, isLive, labelsOf, modelOf, number, ownerOf, shortId, statusNamed, time } from "../text.js";

const PAGE_SIZE = 50;
const MAX_LOOKS = 10; // a page may be empty where few of many runs are wanted

export function SuitesView({ query }) {
  const [suite, labels, pageToken] = ["suite", "labels", "page"].map((name) => query.get(name) || "");
  const status = statusNamed(query.get("status"));
  const [suites] = useLoaded(async (signal) => (await call("ListSuites", { pageSize: 1000 }, signal)).suites || [], []);
  const [page, error, again] = useLoaded(
    (signal) => load({ suites: suite ? [suite] : [], statuses: status ? [`JOB_STATUS_${status}`] : [], labelSelector: labels }, pageToken, signal),
    [suite, status, labels, pageToken]);
  useChanges((job) => page && page.runs.some((run) => run.suiteRunId === job.suiteRunId), again, [page]);
  const address = (parameters) => `/suites?${new URLSearchParams(Object.entries(parameters).filter(([, value]) => value))}`;
  return html`
    <h1>Suites</h1>
    <${Failure} error=${error} />
    <form class="filters" onSubmit=${(event) => { event.preventDefault(); go(address(Object.fromEntries(new FormData(event.target)))); }}>
      <label>Suite <select name="suite" onChange=${(event) => event.target.form.requestSubmit()}>
        <option value="">all</option>${(suites || []).map((each) => html`<option selected=${each.name === suite}>${each.name}</option>`)}</select></label>
      <label>Status <select name="status" onChange=${(event) => event.target.form.requestSubmit()}>
        <option value="">all</option>${STATUSES.map((name) => html`<option value=${name} selected=${name === status}>${name.toLowerCase()}</option>`)}</select></label>
      <label>Labels <input name="labels" value=${labels} placeholder="run=x" spellcheck=${false} /></label>
      <button>Filter</button>
    </form>
    ${page && page.runs.length > 0 && html`<${Table} caption="Suite runs" columns=${["run", "suite", "status", "model", "jobs", "owner", "labels", "created", "took"]}>
      ${page.runs.map((run) => html`<tr key=${run.suiteRunId}>
        <td><a href=${`/suites/${run.suiteRunId}`}><code>${shortId(run.suiteRunId)}</code></a></td>
        <td>${run.suite.name}</td><td><${Status} job=${run} /></td><td class="long">${modelOfRun(run)}</td>
        <td>${doneOf(run)} of ${(run.jobs || []).length}</td><td>${ownerOf(run)}</td>
        <td class="long">${labelsOf(run.submission).join(", ")}</td><td>${time(run.createdAt)}</td><td>${between(run.createdAt, run.completedAt)}</td>
      </tr>`)}
    <//>`}
    ${page && !page.runs.length && html`<p class="muted">No suite runs here.${suites && !suites.length ? " This server has no suites." : ""}</p>`}
    <nav class="pages" aria-label="Pages">
      ${pageToken && html`<a href=${address({ suite, status, labels })}>Newest</a>`}
      ${page && page.nextPageToken && html`<a href=${address({ suite, status, labels, page: page.nextPageToken })}>Older</a>`}
    </nav>`;
}

export function SuiteView({ parts: [suiteRunId], query }) {
  const baseline = query.get("baseline") || "";
  const [run, error, again] = useLoaded(
    (signal) => call("GetSuiteRun", { suiteRunId, baselineSuiteRunId: baseline, view: "SUITE_RUN_VIEW_DECISION" }, signal), [suiteRunId, baseline]);
  useChanges((job) => job.suiteRunId === suiteRunId, again, [suiteRunId]);
  if (!run) return html`<h1>Suite run <code>${shortId(suiteRunId)}</code></h1><${Failure} error=${error} />${!error && html`<p role="status">Deciding…</p>`}`;
  const decision = run.decision || {};
  const findings = decision.findings || [];
  return html`
    <h1>${run.suite.name} <code>${shortId(suiteRunId)}</code> <${Status} job=${run} /></h1>
    <${Failure} error=${error} />
    <section aria-label="Decision" class="decision">
      <p><${Outcome} outcome=${decision.outcome} /></p>
      <ul>${(decision.reasons || []).map((reason) => html`<li>${reason}</li>`)}</ul>
    </section>
    <form class="filters" onSubmit=${(event) => { event.preventDefault(); go(`/suites/${suiteRunId}?${new URLSearchParams(new FormData(event.target))}`); }}>
      <label>Compared with <input name="baseline" value=${baseline || decision.baselineSuiteRunId || ""} pattern="[0-9a-fA-F-]{36}" size="36" title="The id of a suite run" /></label>
      <button>Compare</button>
      ${decision.baselineSuiteRunId && html`<a href=${`/suites/${decision.baselineSuiteRunId}`}>The baseline</a>`}
    </form>
    <p class="muted">${modelOfRun(run)} · ${ownerOf(run)} · ${time(run.createdAt)} ${labelsOf(run.submission).join(", ")}</p>
    <h2>What was found</h2>
    ${findings.length > 0 ? html`<${Table} caption="Findings" columns=${["entry", "metric", "found", "value", "interval", "must reach", "baseline", "difference", "verdict"]}>
      ${findings.map((finding) => html`<${Finding} finding=${finding} />`)}
    <//>` : html`<p class="muted">Nothing yet.</p>`}
    ${Number(decision.findingCount || 0) > findings.length && html`<p class="muted">These are ${findings.length} of ${decision.findingCount}; all count.</p>`}
    <h2>Jobs</h2>
    <${Table} caption="Jobs" columns=${["entry", "job", "status", "tier"]}>
      ${(run.jobs || []).map((job) => html`<tr>
        <td>${job.entry}</td><td><a href=${`/jobs/${job.jobId}`}><code>${shortId(job.jobId)}</code></a></td><td><${Status} job=${job} /></td>
        <td>${tierOf(run, job.entry)}</td>
      </tr>`)}
    <//>`;
}

function Finding({ finding }) {
  const metric = finding.metric || {};
  const verdict = (metric.verdict || "").replace("VERDICT_", "").toLowerCase().replaceAll("_", " ");
  const found = (finding.assessment || "").replace("ASSESSMENT_", "").toLowerCase().replaceAll("_", " ");
  const compare = finding.baselineJobId && `/compare?baseline=${finding.baselineJobId}&candidate=${finding.jobId}`;
  return html`<tr>
    <td>${finding.entry}${finding.required && html` <span class="muted">required</span>`}</td>
    <td>${[metric.task, metric.metric, metric.filter !== "none" && metric.filter].filter(Boolean).join(" ")}</td>
    <td><span class=${`verdict ${found.replaceAll(" ", "-")}`}>${found}</span>${finding.reason && html`<div class="why">${finding.reason}</div>`}</td>
    <td><${Value} value=${metric.candidateValue} error=${metric.candidateStandardError} /></td>
    <td>${finding.valueLower !== undefined && `${number(finding.valueLower)} to ${number(finding.valueUpper)}`}</td>
    <td>${number(finding.threshold)}</td><td>${number(metric.baselineValue)}</td>
    <td>${metric.difference !== undefined && compare ? html`<a href=${compare}>${number(metric.difference)}</a>` : number(metric.difference)}</td>
    <td>${verdict && html`<span class=${`verdict ${verdict.replaceAll(" ", "-")}`}>${verdict}</span>`}</td>
  </tr>`;
}

function Outcome({ outcome = "" }) {
  const name = outcome.replace("SUITE_OUTCOME_", "").replaceAll("_", " ") || "INCONCLUSIVE";
  return html`<strong class=${`outcome ${name.toLowerCase().replaceAll(" ", "-")}`}>${name}</strong>`;
}

// Look again, half a second after a job that matters has changed.
function useChanges(matters, again, inputs) {
  useEffect(() => {
    let timer = 0;
    begin();
    const end = listen((event) => {
      if (!event.job || event.type === "JOB_EVENT_TYPE_PROGRESS" || timer || !matters(event.job)) return;
      timer = setTimeout(() => { timer = 0; again(); }, 500);
    });
    return () => { end(); clearTimeout(timer); };
  }, inputs);
}

async function load(request, firstToken, signal) {
  const page = { runs: [], nextPageToken: firstToken };
  for (let look = 0; look < MAX_LOOKS; look += 1) {
    const more = await call("ListSuiteRuns", { ...request, pageSize: PAGE_SIZE - page.runs.length, pageToken: page.nextPageToken }, signal);
    page.runs.push(...(more.suiteRuns || []));
    page.nextPageToken = more.nextPageToken || "";
    if (!page.nextPageToken || page.runs.length >= PAGE_SIZE) break;
  }
  return page;
}

const doneOf = (run) => (run.jobs || []).filter((job) => !isLive(job)).length;

const tierOf = (run, name) => (((run.suite.entries || []).find((entry) => entry.name === name) || {}).tier || 0);

function modelOfRun(run) {
  const { request, harnessRequests } = run.submission || {};
  return [request, ...Object.values(harnessRequests || {})].map((each) => each && modelOf(each)).find(Boolean) || "";
}
