// Metrics over the steps of training runs: a line for each run, with its error bars.
import { html, useEffect, useRef, useState } from "../html.js";
import { call } from "../api.js";
import { go } from "../app.js";
import { Failure, Table, useLoaded } from "../parts.js";
import { number, shortId, time } from "../text.js";
import uPlot from "../vendor/uplot.js";

const COLOURS = ["#2f6fde", "#d9534f", "#2c9c5a", "#a05bd0", "#c98a10", "#1797a6", "#7a6a58", "#d0579a"];
const MAX_PAGES = 20;
const WHOLE_INCREMENTS = [1, 2, 5].flatMap((digit) => [...Array(12).keys()].map((power) => digit * 10 ** power)).sort((a, b) => a - b);

export function HistoryView({ query }) {
  const [labels, step, run] = [query.get("labels") || "", query.get("step") || "step", query.get("run") || "run"];
  const [points, error] = useLoaded((signal) => loadPoints({ filter: { labelSelector: labels }, stepLabel: step, pageSize: 1000 }, signal), [labels, step]);
  const names = [...new Set((points || []).flatMap((point) => (point.metrics || []).map(nameOf)))].sort();
  const [chosen, setChosen] = useState("");
  const name = names.includes(chosen) ? chosen : names[0];
  const [runs, xTitle] = runsOf(points || [], name, { run, step });
  return html`
    <h1>History</h1>
    <form class="filters" onSubmit=${(event) => { event.preventDefault(); go(`/history?${new URLSearchParams(new FormData(event.target))}`); }}>
      <label>Labels <input name="labels" value=${labels} placeholder="team=blue" spellcheck=${false} /></label>
      <label>Step in <input name="step" value=${step} size="8" /></label>
      <label>A line for each <input name="run" value=${run} size="8" /></label>
      <button>Show</button>
      ${names.length > 1 && html`<label>Metric <select onChange=${(event) => setChosen(event.target.value)}>
        ${names.map((each) => html`<option selected=${each === name}>${each}</option>`)}</select></label>`}
    </form>
    <${Failure} error=${error} />
    ${points && !points.length && html`<p class="muted">No completed jobs with results here.</p>`}
    ${runs.length > 0 && html`<${Chart} name=${name} runs=${runs} xTitle=${xTitle} />
    <${Table} caption=${`${name} by run and step`} columns=${[run, step, "value", "job", "completed"]}>
      ${runs.flatMap((each) => each.points.map((point) => html`<tr>
        <td>${each.run}</td><td>${number(point.step)}</td>
        <td>${number(point.value)}${point.error ? html` <span class="muted">± ${number(point.error)}</span>` : null}</td>
        <td><a href=${`/jobs/${point.jobId}`}><code>${shortId(point.jobId)}</code></a></td><td>${time(point.completedAt)}</td>
      </tr>`))}
    <//>`}`;
}

async function loadPoints(request, signal) {
  const points = [];
  let pageToken = "";
  for (let page = 0; page < MAX_PAGES; page += 1) {
    const answer = await call("GetHistory", { ...request, pageToken }, signal);
    points.push(...(answer.points || []));
    pageToken = answer.nextPageToken;
    if (!pageToken) break;
  }
  return points;
}

const nameOf = (metric) => [metric.task, metric.metric, metric.filter].filter(Boolean).join(" ");

// The runs, and what the x of their points is: the step, if any has one. A job without one, such as a baseline, is then in the table alone.
function runsOf(points, name, labels) {
  const found = points.flatMap((point) => {
    const metric = (point.metrics || []).find((each) => nameOf(each) === name);
    return metric && typeof metric.value === "number" ? [{ ...point, value: metric.value, error: metric.standardError }] : [];
  });
  const haveSteps = found.some((point) => point.step !== undefined);
  const runs = new Map();
  found.forEach((point, place) => {
    const run = (point.labels || {})[labels.run] || point.model;
    if (!runs.has(run)) runs.set(run, []);
    runs.get(run).push({ ...point, x: haveSteps ? point.step : place + 1 });
  });
  const sorted = [...runs].map(([run, its]) => ({ run, points: its.sort((a, b) => (a.x ?? Infinity) - (b.x ?? Infinity)) }));
  return [sorted, haveSteps ? labels.step : "job, in order of creation"];
}

// uPlot takes one list of x for all lines, with nothing where a line has no point.
function Chart({ name, runs: all, xTitle }) {
  const box = useRef(null);
  const runs = all.map((run) => ({ ...run, points: run.points.filter((point) => point.x !== undefined) })).filter((run) => run.points.length);
  useEffect(() => {
    const places = [...new Set(runs.flatMap((run) => run.points.map((point) => point.x)))].sort((a, b) => a - b);
    const at = (run, value) => {
      const byPlace = new Map(run.points.map((point) => [point.x, value(point)]));
      return places.map((x) => byPlace.get(x) ?? null);
    };
    const ink = getComputedStyle(document.body).color;
    const lines = runs.map((run, place) => ({ label: run.run, stroke: COLOURS[place % COLOURS.length], width: 2, spanGaps: true, points: { show: true } }));
    const errors = runs.map((run) => at(run, (point) => point.error ?? 0));
    const margin = errors.flat().reduce((largest, error) => Math.max(largest, error ?? 0), 0); // so that every bar is there whole
    const chart = new uPlot({
      width: box.current.clientWidth, height: 320, title: name,
      scales: { x: { time: false, range: (_, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) }, y: { range: (_, low, high) => uPlot.rangeNum((low ?? 0) - margin, (high ?? 1) + margin, 0.1, true) } },
      axes: [{ stroke: ink, grid: { stroke: "#8884" }, ...(places.every(Number.isInteger) && { incrs: WHOLE_INCREMENTS }) }, { stroke: ink, grid: { stroke: "#8884" } }],
      series: [{ label: xTitle }, ...lines],
      hooks: { draw: [(plot) => drawErrors(plot, errors)] },
    }, [places, ...runs.map((run) => at(run, (point) => point.value))], box.current);
    const observer = new ResizeObserver(() => chart.setSize({ width: box.current.clientWidth, height: 320 }));
    observer.observe(box.current);
    return () => { observer.disconnect(); chart.destroy(); };
  }, [name, runs.map((run) => run.points.map((point) => `${point.jobId}${point.value}`).join()).join()]);
  return html`<div class="chart" ref=${box} role="img" aria-label=${`${name} of ${runs.length} runs, by ${xTitle}; the table below has the values`}></div>`;
}

function drawErrors(plot, errors) {
  const { ctx, data } = plot;
  ctx.save();
  errors.forEach((ofRun, place) => {
    ctx.strokeStyle = COLOURS[place % COLOURS.length];
    ctx.lineWidth = devicePixelRatio;
    data[place + 1].forEach((value, index) => {
      if (value === null || !ofRun[index] || !plot.series[place + 1].show) return;
      const x = plot.valToPos(data[0][index], "x", true);
      ctx.beginPath();
      ctx.moveTo(x, plot.valToPos(value - ofRun[index], "y", true));
      ctx.lineTo(x, plot.valToPos(value + ofRun[index], "y", true));
      ctx.stroke();
    });
  });
  ctx.restore();
}
