// The samples of a job, page by page; by text and by score among all of them.
import { html } from "../html.js";
import { call } from "../api.js";
import { go } from "../app.js";
import { Failure, useLoaded } from "../parts.js";
import { Sample } from "../sample.js";
import { shortId } from "../text.js";

const PAGE_SIZE = 50;
const MAX_LOOKS = 20; // at a filtered page, each of which ends after ten seconds

export function SamplesView({ parts: [jobId], query }) {
  const [model, task, pageToken, text, metric, from, to] = ["model", "task", "page", "text", "metric", "from", "to"].map((name) => query.get(name) || "");
  const [job, jobError] = useLoaded((signal) => call("GetJob", { jobId }, signal), [jobId]);
  const models = Object.keys((job && job.results) || {});
  const chosenModel = model || models[0] || "";
  const tasks = tasksOf(job, chosenModel);
  const chosenTask = task || tasks[0] || "";
  const [page, error] = useLoaded(async (signal) => {
    if (!chosenTask) return null;
    return load({ jobId, model: chosenModel, task: chosenTask, filter: filterOf({ text, metric, from, to }) }, pageToken, signal);
  }, [jobId, chosenModel, chosenTask, pageToken, text, metric, from, to]);

  const samples = (page && page.samples) || [];
  const metrics = metricsOf(job, chosenModel, chosenTask);
  const address = (changes) => {
    const parameters = { model: chosenModel, task: chosenTask, text, metric, from, to, ...changes };
    return `/jobs/${jobId}/samples?${new URLSearchParams(Object.entries(parameters).filter(([, value]) => value))}`;
  };
  const narrow = (event) => {
    event.preventDefault();
    go(address(Object.fromEntries(new FormData(event.target))));
  };
  return html`
    <h1>Samples of job <a href=${`/jobs/${jobId}`}><code>${shortId(jobId)}</code></a></h1>
    <${Failure} error=${jobError || error} />
    <form class="filters" onSubmit=${narrow}>
      ${models.length > 1 && html`<${Choice} name="Model" values=${models} chosen=${chosenModel} choose=${(value) => go(address({ model: value, task: "" }))} />`}
      <${Choice} name="Task" values=${tasks} chosen=${chosenTask} choose=${(value) => go(address({ task: value, metric: "", from: "", to: "" }))} />
      <label>Text <input name="text" type="search" value=${text} maxlength="1024" /></label>
      <label>Score <select name="metric">
        <option value="">any</option>
        ${metrics.map((each) => html`<option value=${each} selected=${each === metric}>${each}</option>`)}
      </select></label>
      <label>from <input name="from" type="number" step="any" value=${from} class="short" /></label>
      <label>to <input name="to" type="number" step="any" value=${to} class="short" /></label>
      <button>Find</button>
      ${(text || metric) && html`<a class="button" href=${address({ text: "", metric: "", from: "", to: "" })}>All</a>`}
    </form>
    <p class="muted" role="status">${page ? status(page, text || metric) : chosenTask && !error ? "Looking…" : ""}</p>
    ${samples.map((sample, place) => html`<${Sample} key=${page.sampleTokens[place]} sample=${sample}
      place=${{ jobId, model: chosenModel, task: chosenTask, token: page.sampleTokens[place] }} />`)}
    ${page && (page.truncatedFields || []).length > 0 && html`<p class="muted">Cut, since they are too large: ${page.truncatedFields.join(", ")}</p>`}
    <nav class="pages" aria-label="Pages">
      ${pageToken && html`<a href=${address({})}>First</a>`}
      ${page && page.nextPageToken && html`<a href=${address({ page: page.nextPageToken })}>Next</a>`}
    </nav>`;
}

const Choice = ({ name, values, chosen, choose }) => html`<label>${name}
  <select onChange=${(event) => choose(event.target.value)}>${values.map((value) => html`<option selected=${value === chosen}>${value}</option>`)}</select>
</label>`;

function status(page, isNarrowed) {
  const count = page.samples.length;
  if (!isNarrowed) return `${count} on this page`;
  return count ? `${count} found${page.nextPageToken ? ", and perhaps more on the next page" : ""}` : page.nextPageToken ? "None so far" : "None found";
}

// Load a page; of a filtered one that ends early, what follows, too.
async function load(request, firstToken, signal) {
  const page = { samples: [], sampleTokens: [], truncatedFields: [], nextPageToken: firstToken };
  for (let look = 0; look < (request.filter ? MAX_LOOKS : 1); look += 1) {
    const more = await call("ListSamples", { ...request, pageSize: PAGE_SIZE - page.samples.length, pageToken: page.nextPageToken }, signal);
    page.samples.push(...(more.samples || []));
    page.sampleTokens.push(...(more.sampleTokens || []));
    page.truncatedFields.push(...(more.truncatedFields || []));
    page.nextPageToken = more.nextPageToken || "";
    if (!page.nextPageToken || page.samples.length >= PAGE_SIZE) break;
  }
  return page;
}

function filterOf({ text, metric, from, to }) {
  if (!text && !metric) return undefined;
  const value = (given) => (metric && given !== "" ? Number(given) : undefined);
  return { text, metric, minValue: value(from), maxValue: value(to) };
}

function tasksOf(job, model) {
  const result = job && job.results && job.results[model];
  const named = ((result && result.tasks) || []).filter((each) => !each.isGroup).map((each) => each.task);
  return named.length || !job ? named : job.request.tasks || [];
}

function metricsOf(job, model, task) {
  const result = job && job.results && job.results[model];
  const metrics = ((result && result.metrics) || []).filter((each) => each.task === task);
  return [...new Set(metrics.map((each) => (each.filter && each.filter !== "none" ? `${each.metric},${each.filter}` : each.metric)))];
}
