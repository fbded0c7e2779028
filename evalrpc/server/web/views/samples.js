// The samples of a job, page by page, narrowed on the page by text and by score.
import { html, useState } from "../html.js";
import { call } from "../api.js";
import { go } from "../app.js";
import { Failure, useLoaded } from "../parts.js";
import { Sample, idOf, scoresOf } from "../sample.js";
import { shortId } from "../text.js";

const PAGE_SIZE = 50;

export function SamplesView({ parts: [jobId], query }) {
  const [model, task, pageToken] = ["model", "task", "page"].map((name) => query.get(name) || "");
  const [text, setText] = useState("");
  const [score, setScore] = useState("");
  const [job, jobError] = useLoaded((signal) => call("GetJob", { jobId }, signal), [jobId]);
  const models = Object.keys((job && job.results) || {});
  const chosenModel = model || models[0] || "";
  const tasks = tasksOf(job, chosenModel);
  const chosenTask = task || tasks[0] || "";
  const [page, error] = useLoaded(async (signal) => {
    if (!chosenTask) return null;
    return call("ListSamples", { jobId, model: chosenModel, task: chosenTask, pageSize: PAGE_SIZE, pageToken }, signal);
  }, [jobId, chosenModel, chosenTask, pageToken]);

  const samples = (page && page.samples) || [];
  const shown = samples.filter((sample) => matches(sample, text, score));
  const address = (changes) => `/jobs/${jobId}/samples?${new URLSearchParams({ model: chosenModel, task: chosenTask, ...changes })}`;
  return html`
    <h1>Samples of job <a href=${`/jobs/${jobId}`}><code>${shortId(jobId)}</code></a></h1>
    <${Failure} error=${jobError || error} />
    <form class="filters" onSubmit=${(event) => event.preventDefault()}>
      ${models.length > 1 && html`<${Choice} name="Model" values=${models} chosen=${chosenModel} choose=${(value) => go(address({ model: value, task: "" }))} />`}
      <${Choice} name="Task" values=${tasks} chosen=${chosenTask} choose=${(value) => go(address({ task: value }))} />
      <label>Text on this page <input type="search" value=${text} onInput=${(event) => setText(event.target.value)} /></label>
      <label>Score
        <select value=${score} onChange=${(event) => setScore(event.target.value)}>
          <option value="">any</option><option value="0">a score of 0 or less</option><option value="1">all above 0</option>
        </select>
      </label>
    </form>
    <p class="muted" role="status">${page ? `${shown.length} of ${samples.length} on this page` : ""}</p>
    ${shown.map((sample) => html`<${Sample} key=${idOf(sample)} sample=${sample} heading=${`Sample ${idOf(sample)}`} />`)}
    ${page && (page.truncatedFields || []).length > 0 && html`<p class="muted">Cut, since they are too large: ${page.truncatedFields.join(", ")}</p>`}
    <nav class="pages" aria-label="Pages">
      ${pageToken && html`<a href=${address({})}>First</a>`}
      ${page && page.nextPageToken && html`<a href=${address({ page: page.nextPageToken })}>Next</a>`}
    </nav>`;
}

const Choice = ({ name, values, chosen, choose }) => html`<label>${name}
  <select onChange=${(event) => choose(event.target.value)}>${values.map((value) => html`<option selected=${value === chosen}>${value}</option>`)}</select>
</label>`;

function tasksOf(job, model) {
  const result = job && job.results && job.results[model];
  const named = ((result && result.tasks) || []).filter((each) => !each.isGroup).map((each) => each.task);
  return named.length || !job ? named : job.request.tasks || [];
}

function matches(sample, text, score) {
  if (text && !JSON.stringify(sample).toLowerCase().includes(text.toLowerCase())) return false;
  if (!score) return true;
  const values = Object.values(scoresOf(sample)).map(Number).filter(Number.isFinite);
  return values.length > 0 && values.every((value) => value > 0) === (score === "1");
}
