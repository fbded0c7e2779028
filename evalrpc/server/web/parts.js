// Pieces that several views are made of.
import { html, Component, useEffect, useState } from "./html.js";
import { isLive, number, phaseOf, statusOf } from "./text.js";

// Load something, anew whenever one of `inputs` changes. Returns [value, error, again].
export function useLoaded(load, inputs) {
  const [state, setState] = useState({ value: null, error: null });
  const [round, setRound] = useState(0);
  useEffect(() => {
    const controller = new AbortController();
    load(controller.signal).then(
      (value) => setState({ value, error: null }),
      (error) => error.name !== "AbortError" && setState((old) => ({ ...old, error })),
    );
    return () => controller.abort();
  }, [...inputs, round]);
  return [state.value, state.error, () => setRound((old) => old + 1)];
}

// A number that grows every so many seconds, so that what depends on the time is drawn anew.
export function useTicks(seconds) {
  const [ticks, setTicks] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => setTicks((old) => old + 1), seconds * 1000);
    return () => clearInterval(timer);
  }, [seconds]);
  return ticks;
}

export const Failure = ({ error }) => error && html`
  <div class="failure" role="alert">
    <strong>${error.code === "not_found" ? "Not found" : "That did not work"}:</strong> ${error.message}
  </div>`;

// What is drawn within it; where that can't be drawn, a message, and all around it stays as it is.
export class Guard extends Component {
  static getDerivedStateFromError(error) {
    return { error };
  }

  componentDidCatch(error) {
    console.error(error);
  }

  render({ what, children }, { error }) {
    return error ? html`<p class="failure" role="alert">${what} can't be shown: ${error.message}</p>` : children;
  }
}

export const Status = ({ job }) => html`<span class=${`status ${statusOf(job).toLowerCase()}`}>${statusOf(job).toLowerCase()}</span>`;

export function ProgressBar({ job }) {
  const { done, total, unit } = job.progress || {};
  if (!isLive(job) || !job.progress) return null;
  const label = `${phaseOf(job.progress)} ${total ? `${done || 0} of ${total} ${unit || ""}` : ""}`;
  return html`<span class="progress">
    ${total ? html`<progress aria-label=${label} max=${total} value=${done || 0}></progress>` : null} <span>${label}</span>
  </span>`;
}

export const Value = ({ value, error }) => html`${number(value)}${error ? html` <span class="muted">± ${number(error)}</span>` : null}`;

// A table with a head. Where the window is narrow it scrolls by itself; one that stacks puts the cells of a row below each other.
export const Table = ({ caption, columns, stacks, children }) => html`
  <div class="scroll" tabindex="0" role="region" aria-label=${caption}>
    <table class=${stacks ? "stacks" : ""}>
      <caption class="hidden">${caption}</caption>
      <thead><tr>${columns.map((column) => html`<th scope="col">${column}</th>`)}</tr></thead>
      <tbody>${children}</tbody>
    </table>
  </div>`;
