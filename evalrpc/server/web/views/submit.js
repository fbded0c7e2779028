// Submit an evaluation, new or as a copy. What is wrong with it is said while one types: the server itself checks it.
import { html, useEffect, useState } from "../html.js";
import { call } from "../api.js";
import { go } from "../app.js";
import { Failure, useLoaded } from "../parts.js";
import { labelsOf } from "../text.js";

const CHECK_MILLISECONDS = 400;
const EMPTY = { harness: "", model: "", tasks: "", modelArgs: "", genKwargs: "", taskArgs: "", limit: "", numFewshot: "", numGpus: "", batchSize: "", labels: "", priority: "" };
const FIELDS = [
  ["model", "Model type", "as the harness calls it, such as hf or llava_hf"],
  ["tasks", "Tasks", "with commas between them"],
  ["modelArgs", "Model arguments", "NAME=VALUE with commas between them, or JSON"],
  ["genKwargs", "Generation arguments", "likewise"],
  ["taskArgs", "Task arguments", "likewise, such as epochs=3"],
  ["numGpus", "GPUs", "empty: the server's default"],
  ["limit", "Limit", "documents of each task, or a fraction; empty: all"],
  ["numFewshot", "Examples", "shown before each question; empty: the task's own"],
  ["batchSize", "Batch size", "empty: the harness's default"],
  ["labels", "Labels", "NAME=VALUE with commas between them"],
  ["priority", "Priority", "the higher, the earlier; empty: 0"],
];
const ARGUMENTS = { modelArgs: valueOf, genKwargs: valueOf, taskArgs: valueOf, labels: String };

export function SubmitView({ query }) {
  const copied = query.get("copy") || "";
  const [form, setForm] = useState(EMPTY);
  const [rest, setRest] = useState({});
  const [problems, setProblems] = useState({});
  const [failure, setFailure] = useState(null);
  const [listed] = useLoaded((signal) => call("ListHarnesses", {}, signal), []);
  const [, copyError] = useLoaded(async (signal) => {
    if (!copied) return;
    const job = await call("GetJob", { jobId: copied }, signal);
    setForm(filledFrom(job));
    setRest(job.request);
  }, [copied]);
  const harnesses = (listed && listed.harnesses) || [];
  const harness = harnesses.find((each) => each.name === form.harness) || (harnesses.length === 1 ? harnesses[0] : null);
  const tasks = useSuggestions("ListTasks", "tasks", harness, lastOf(form.tasks));
  const models = useSuggestions("ListModels", "models", harness, form.model);

  const check = async (validateOnly, signal) => {
    const unread = problemsOf(form);
    const isRead = !Object.keys(unread).length;
    try {
      const job = await call("SubmitJob", { ...submission(form, rest), validateOnly: validateOnly || !isRead }, signal);
      setProblems(unread);
      setFailure(null);
      return isRead ? job : null;
    } catch (error) {
      if (error.name === "AbortError") return null;
      const found = Object.fromEntries(error.fields.map((each) => [fieldOf(each.field), each.description]));
      setProblems({ ...found, ...unread });
      setFailure(error.fields.length ? null : error);
      return null;
    }
  };
  useEffect(() => {
    if (!form.model && !form.tasks) return undefined;
    const controller = new AbortController();
    const timer = setTimeout(() => check(true, controller.signal), CHECK_MILLISECONDS);
    return () => { clearTimeout(timer); controller.abort(); };
  }, [JSON.stringify(form), JSON.stringify(rest)]);

  const submit = async (event) => {
    event.preventDefault();
    const job = await check(false);
    if (job) go(`/jobs/${job.jobId}`);
  };
  const set = (name) => (event) => setForm((old) => ({ ...old, [name]: event.target.value }));
  const others = Object.entries(problems).filter(([name]) => !(name in EMPTY));
  return html`
    <h1>${copied ? "Submit a copy" : "Submit an evaluation"}</h1>
    <${Failure} error=${copyError || failure} />
    ${others.map(([name, problem]) => html`<p class="problem" role="alert">${name}: ${problem}</p>`)}
    <form class="submit" onSubmit=${submit}>
      <${Field} name="harness" title="Harness" problem=${problems.harness}>
        <select id="harness" value=${form.harness} onChange=${set("harness")}>
          <option value="">the default</option>
          ${harnesses.map((each) => html`<option value=${each.name} disabled=${!each.available} selected=${each.name === form.harness}>
            ${each.name}${each.available ? ` ${each.version || ""}` : `: ${each.unavailableReason}`}</option>`)}
        </select>
      <//>
      ${FIELDS.map(([name, title, hint]) => html`<${Field} key=${name} name=${name} title=${title} hint=${hint} problem=${problems[name]}>
        <input id=${name} value=${form[name]} onInput=${set(name)} spellcheck=${false} autocomplete="off"
          list=${name === "tasks" || name === "model" ? `known-${name}` : undefined}
          aria-invalid=${Boolean(problems[name])} aria-describedby=${`${name}-hint`} required=${name === "tasks"} />
      <//>`)}
      <datalist id="known-tasks">${tasks.map((task) => html`<option value=${[...form.tasks.split(",").slice(0, -1), task].join(",")} />`)}</datalist>
      <datalist id="known-model">${models.map((model) => html`<option value=${model} />`)}</datalist>
      <button class="primary">Submit</button>
    </form>`;
}

const Field = ({ name, title, hint, problem, children }) => html`<div class="field">
  <label for=${name}>${title}</label>${children}
  <span id=${`${name}-hint`} class=${problem ? "problem" : "muted"} role=${problem ? "alert" : undefined}>${problem || hint || ""}</span>
</div>`;

// What the harness knows that contains a text, once nothing was typed for a moment. A command knows nothing.
function useSuggestions(method, field, harness, text) {
  const [known, setKnown] = useState([]);
  useEffect(() => {
    if (!text || !harness || !harness.available || harness.kind === "command") return undefined;
    const controller = new AbortController();
    const look = () => call(method, { harness: harness.name, query: text, pageSize: 20 }, controller.signal).then((answer) => setKnown(answer[field] || []), () => {});
    const timer = setTimeout(look, CHECK_MILLISECONDS);
    return () => { clearTimeout(timer); controller.abort(); };
  }, [harness && harness.name, text]);
  return known;
}

const lastOf = (tasks) => tasks.split(",").at(-1).trim();

function submission(form, rest) {
  const request = { ...rest, harness: form.harness, model: form.model, tasks: listed(form.tasks), batchSize: form.batchSize };
  const { labels, ...args } = Object.fromEntries(Object.entries(ARGUMENTS).map(([name, convert]) => [name, readArguments(form[name], convert)[0]]));
  Object.assign(request, args);
  for (const name of ["limit", "numFewshot", "numGpus"]) {
    delete request[name];
    if (form[name] !== "") request[name] = numberOf(form[name]);
  }
  return { request, labels, priority: form.priority === "" ? 0 : numberOf(form.priority) };
}

const listed = (text) => text.split(",").map((part) => part.trim()).filter(Boolean);

// What is no number goes as it is: the server says what is wrong with it.
const numberOf = (text) => (Number.isFinite(Number(text)) ? Number(text) : text);

// What a field of arguments says, and what is wrong with it.
function readArguments(text, convert) {
  if (text.trim().startsWith("{")) {
    try {
      return [JSON.parse(text), ""];
    } catch (error) {
      return [{}, `is no valid JSON: ${error.message}`];
    }
  }
  const pairs = listed(text).map((pair) => pair.split("="));
  const bare = pairs.find((pair) => pair.length === 1);
  if (bare) return [{}, `${bare[0]} is not of the form NAME=VALUE`];
  return [Object.fromEntries(pairs.map(([name, ...value]) => [name.trim(), convert(value.join("=").trim())])), ""];
}

const problemsOf = (form) => Object.fromEntries(
  Object.entries(ARGUMENTS).map(([name, convert]) => [name, readArguments(form[name], convert)[1]]).filter(([, problem]) => problem));

function valueOf(text) {
  if (["true", "false"].includes(text.toLowerCase())) return text.toLowerCase() === "true";
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

function filledFrom(job) {
  const { request } = job;
  const text = (value) => (value === undefined ? "" : String(value));
  const json = (value) => (value && Object.keys(value).length ? JSON.stringify(value) : "");
  return {
    harness: request.harness || "", model: request.model || "", tasks: (request.tasks || []).join(","),
    modelArgs: json(request.modelArgs), genKwargs: json(request.genKwargs), taskArgs: json(request.taskArgs), limit: text(request.limit),
    numFewshot: text(request.numFewshot), numGpus: text(request.numGpus), batchSize: text(request.batchSize),
    labels: labelsOf(job).join(","), priority: text(job.priority || ""),
  };
}

// The field of the form that a field of the message stands in: request.model_args.dtype is modelArgs.
function fieldOf(path) {
  const name = path.replace(/^request\./, "").split(/[.[]/)[0];
  return name.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase());
}
