// What a sample is about: images are shown, everything else is offered as a file, whatever it claims to be.
import { html, useEffect, useRef, useState } from "./html.js";
import { messages } from "./api.js";
import { bytes } from "./text.js";

const SHOWN = new Set(["image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp", "image/avif"]); // by their bytes, as the server says
const MAX_SHOWN_BYTES = 16 * 1024 * 1024;
const MAX_MEDIA = 16;

// The media of one sample, loaded once it comes into sight.
export function Media({ jobId, model, task, sampleId, token }) {
  const [media, setMedia] = useState([]);
  const [error, setError] = useState(null);
  const box = useRef(null);
  useEffect(() => {
    const controller = new AbortController();
    const urls = [];
    const load = async () => {
      const sample = token ? { sampleToken: token } : { sampleId };
      for (let index = 0; index < MAX_MEDIA; index += 1) {
        const medium = await one({ jobId, model, task, ...sample, startIndex: index, maxMedia: 1 }, controller.signal);
        if (!medium) return;
        if (medium.url) urls.push(medium.url);
        setMedia((old) => [...old, medium]);
      }
    };
    const observer = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      load().catch((failed) => failed.name !== "AbortError" && setError(failed));
    }, { rootMargin: "400px" });
    observer.observe(box.current);
    return () => { observer.disconnect(); controller.abort(); urls.forEach(URL.revokeObjectURL); };
  }, [jobId, model, task, sampleId, token]);
  const address = (index) => `/v1/jobs/${jobId}/media/${index}?${new URLSearchParams({ model, task, ...(token ? { sample_token: token } : { sample_id: sampleId }) })}`;
  return html`<div class="media" ref=${box}>
    ${media.map((medium) => {
      if (medium.url) return html`<img src=${medium.url} alt=${`Image ${medium.index + 1} of sample ${sampleId}`} />`;
      if (medium.problem) return html`<p class="muted">${medium.source}: ${medium.problem}</p>`;
      return html`<p><a href=${address(medium.index)} download>${medium.source}</a> <span class="muted">${medium.mediaType}, ${bytes(medium.size)}</span></p>`;
    })}
    ${error && html`<p class="muted">No images: ${error.message}</p>`}
  </div>`;
}

// Return a medium, with a URL if it is an image; null where there is none.
async function one(request, signal) {
  const controller = new AbortController();
  const abort = () => controller.abort();
  signal.addEventListener("abort", abort);
  const parts = [];
  let first = null;
  try {
    for await (const piece of messages("ReadSampleMedia", request, controller.signal)) {
      first = first || { index: piece.index, source: piece.source, mediaType: piece.mediaType, size: Number(piece.sizeBytes || 0) };
      if (piece.problem) return { ...first, problem: piece.problem };
      if (!SHOWN.has(first.mediaType) || first.size > MAX_SHOWN_BYTES) return first;
      parts.push(Uint8Array.from(atob(piece.data || ""), (character) => character.charCodeAt(0)));
    }
  } finally {
    signal.removeEventListener("abort", abort);
    controller.abort(); // a stream that is left early goes on otherwise
  }
  return first && { ...first, url: URL.createObjectURL(new Blob(parts, { type: first.mediaType })) };
}
