// One sample, whichever harness has written it: what was asked, what was answered, and what that scored.
import { html } from "./html.js";
import { Media } from "./media.js";
import { Guard } from "./parts.js";
import { number } from "./text.js";

const ASKED = ["input", "prompt", "question", "arguments", "doc"];
const ANSWERED = ["filtered_resps", "output", "resps", "answer", "pred"];
const IMAGE = /^data:image\/(?:png|jpeg|webp|gif|bmp|avif);base64,[A-Za-z0-9+/=]+$/;
const MAX_IMAGES = 8;

const idOf = (sample) => String(sample.doc_id ?? sample.id ?? "");

// The numbers and verdicts of a sample, by name.
export function scoresOf(sample) {
  const scores = {};
  for (const [name, value] of Object.entries(sample)) {
    if (name === "scores" && value && typeof value === "object") {
      for (const [scorer, score] of Object.entries(value)) scores[scorer] = score && typeof score === "object" ? score.value : score;
    } else if (!["doc_id", "id", "epoch", "idx"].includes(name) && (typeof value === "number" || typeof value === "boolean")) {
      scores[name] = value;
    }
  }
  return scores;
}

// `place` is where the sample is from: what it is about is then loaded from there. Without one, images within it are shown; null:
// they are shown elsewhere. One that can't be drawn leaves the others as they are.
export const Sample = (props) => html`<${Guard} what="A sample"><${Drawn} ...${props} /><//>`;

function Drawn({ sample, heading = `Sample ${idOf(sample)}`, place }) {
  const images = place === undefined ? imagesIn(sample).slice(0, MAX_IMAGES) : [];
  return html`<article class="sample">
    <h3>${heading}</h3>
    <p class="scores">${Object.entries(scoresOf(sample)).map(([name, value]) => html`<span>${name} <b>${typeof value === "object" ? JSON.stringify(value) : number(value)}</b></span>`)}</p>
    ${images.map((source, place) => html`<img src=${source} alt=${`Image ${place + 1} of sample ${idOf(sample)}`} />`)}
    ${place && html`<${Media} ...${place} sampleId=${idOf(sample)} />`}
    <${Part} name="asked" value=${first(sample, ASKED)} />
    <${Part} name="expected" value=${sample.target} />
    <${Part} name="answered" value=${first(sample, ANSWERED)} />
    <details><summary>All of it</summary><pre>${JSON.stringify(sample, shortened, 2)}</pre></details>
  </article>`;
}

function Part({ name, value }) {
  if (value === undefined || value === null || value === "") return null;
  return html`<section><h4>${name}</h4>${isConversation(value)
    ? html`<ol class="conversation">${value.map((turn) => html`<li class=${turn.role}><b>${turn.role}</b><div>${plain(turn.content)}</div></li>`)}</ol>`
    : html`<pre>${plain(value)}</pre>`}</section>`;
}

const first = (sample, names) => names.map((name) => sample[name]).find((value) => value !== undefined && value !== null && value !== "");

const isConversation = (value) => Array.isArray(value) && value.length > 0 && value.every((turn) => turn && typeof turn === "object" && typeof turn.role === "string");

// The text of a value: of nested lists with one element that element, of parts of a message their texts.
function plain(value) {
  if (typeof value === "string") return IMAGE.test(value) ? "(image)" : value;
  if (Array.isArray(value) && value.length === 1) return plain(value[0]);
  if (Array.isArray(value) && value.every((part) => part && typeof part === "object" && typeof part.text === "string")) {
    return value.map((part) => part.text).join("\n");
  }
  return JSON.stringify(value, shortened, 2);
}

const shortened = (_, value) => (typeof value === "string" && IMAGE.test(value) ? `${value.slice(0, 32)}…` : value);

function imagesIn(value, found = [], depth = 0) {
  if (typeof value === "string" && IMAGE.test(value)) found.push(value);
  else if (value && typeof value === "object" && depth < 8) Object.values(value).forEach((each) => imagesIn(each, found, depth + 1));
  return found;
}
