// Two jobs side by side: the verdict for each metric, and the samples whose answers have changed sides.
import { html, useState } from "../html.js";
import { call } from "../api.js";
import { go } from "../app.js";
import { Media } from "../media.js";
import { Failure, Table, useLoaded } from "../parts.js";
import { Sample } from "../sample.js";
import { modelOf, number, shortId } from "../text.js";

export function CompareView({ query }) {
  const baseline = query.get("baseline") || "";
  const candidate = query.get("candidate") || "";
  const isChosen = baseline && candidate;
  const [jobs] = useLoaded(async (signal) => (isChosen ? Promise.all([baseline, candidate].map((jobId) => call("GetJob", { jobId }, signal))) : null), [baseline, candidate]);
  const [compared, error] = useLoaded(
    async (signal) => (isChosen ? call("CompareJobs", { baselineJobId: baseline, candidateJobIds: [candidate] }, signal) : null), [baseline, candidate]);
  const metrics = (compared && compared.candidates && compared.candidates[0].metrics) || [];
  return html`
    <h1>Compare two jobs</h1>
    <form class="filters" onSubmit=${(event) => { event.preventDefault(); go(`/compare?${new URLSearchParams(new FormData(event.target))}`); }}>
      <label>Baseline <input name="baseline" value=${baseline} required pattern="[0-9a-fA-F-]{36}" size="36" title="The id of a job" /></label>
      <label>Candidate <input name="candidate" value=${candidate} required pattern="[0-9a-fA-F-]{36}" size="36" title="The id of a job" /></label>
      <button>Compare</button>
      ${isChosen && html`<a class="button" href=${`/compare?baseline=${candidate}&candidate=${baseline}`}>The other way round</a>`}
    </form>
    <${Failure} error=${error} />
    ${!isChosen && html`<p class="muted">Give the ids of two jobs, or choose two in <a href="/">the list of jobs</a>.</p>`}
    ${isChosen && !compared && !error && html`<p role="status">Comparing…</p>`}
    ${jobs && html`<p>${jobs.map((job, place) => html`${place > 0 ? " → " : ""}<a href=${`/jobs/${job.jobId}`}><code>${shortId(job.jobId)}</code> ${modelOf(job.request)}</a>`)}</p>`}
    ${metrics.length > 0 && html`<${Table} caption="Metrics" columns=${["task", "metric", "baseline", "candidate", "difference", "interval", "p", "verdict"]}>
      ${metrics.map((metric) => html`<tr>
        <td>${metric.task}</td><td>${metric.metric}${metric.filter && ` (${metric.filter})`}</td>
        <td>${number(metric.baselineValue)}</td><td>${number(metric.candidateValue)}</td><td>${number(metric.difference)}</td>
        <td>${metric.intervalLower !== undefined && `${number(metric.intervalLower)} to ${number(metric.intervalUpper)}`}</td>
        <td>${number(metric.adjustedPValue ?? metric.pValue)}</td>
        <td><${Verdict} metric=${metric} />${metric.note && html`<div class="why">${metric.note}</div>`}</td>
      </tr>`)}
    <//>
    <p class="muted">Intervals are at ${Math.round((compared.confidenceLevel || 0.95) * 100)} %. Methods: ${[...new Set(metrics.map((metric) => (metric.method || "").replace("TEST_METHOD_", "").toLowerCase()))].filter(Boolean).join(", ")}.</p>
    <${Flips} baseline=${baseline} candidate=${candidate} metrics=${metrics} />`}`;
}

function Verdict({ metric }) {
  const verdict = (metric.verdict || "").replace("VERDICT_", "").toLowerCase().replace("_", " ");
  return html`<span class=${`verdict ${verdict.replace(" ", "-")}`}>${verdict}</span>`;
}

function Flips({ baseline, candidate, metrics }) {
  const [place, setPlace] = useState(0);
  const [direction, setDirection] = useState("FLIP_DIRECTION_UNSPECIFIED");
  const [token, setToken] = useState("");
  const { task, metric, filter } = metrics[place] || metrics[0];
  const isPaired = Number((metrics[place] || metrics[0]).pairedSampleCount) > 0;
  const [page, error] = useLoaded(async (signal) => (isPaired ? call("ListFlips", {
    baselineJobId: baseline, candidateJobId: candidate, metric: { task, metric, filter }, direction, pageSize: 20, pageToken: token,
  }, signal) : null), [baseline, candidate, place, direction, token]);
  const restart = (change) => (event) => { setToken(""); change(event.target.value); };
  return html`<section>
    <h2>What has changed</h2>
    <form class="filters" onSubmit=${(event) => event.preventDefault()}>
      <label>Metric <select onChange=${restart((value) => setPlace(Number(value)))}>
        ${metrics.map((each, index) => html`<option value=${index} selected=${index === place}>${each.task} ${each.metric}</option>`)}</select></label>
      <label>Direction <select onChange=${restart(setDirection)}>
        <option value="FLIP_DIRECTION_UNSPECIFIED">both</option><option value="FLIP_DIRECTION_WORSE">worse</option><option value="FLIP_DIRECTION_BETTER">better</option></select></label>
    </form>
    <${Failure} error=${error} />
    ${!isPaired && html`<p class="muted">The samples of this metric have no values that could be paired.</p>`}
    ${page && html`<p role="status">${page.worseCount || 0} worse, ${page.betterCount || 0} better, of ${page.pairedSampleCount || 0} pairs</p>`}
    ${((page && page.flips) || []).map((flip) => html`<section class="flip" key=${flip.docId}>
      <h3>Sample ${flip.docId}: ${number(flip.baselineValue)} → ${number(flip.candidateValue)}</h3>
      <${Media} jobId=${candidate} model="" task=${task} sampleId=${flip.docId} />
      <div class="pair"><${Sample} sample=${flip.baselineSample || {}} heading="Baseline" place=${null} /><${Sample} sample=${flip.candidateSample || {}} heading="Candidate" place=${null} /></div>
    </section>`)}
    ${page && page.nextPageToken && html`<button type="button" onClick=${() => setToken(page.nextPageToken)}>Next</button>`}
  </section>`;
}
