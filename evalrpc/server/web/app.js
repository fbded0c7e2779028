// The page: which view the URL asks for, and what stands around it.
import { html, render, useEffect, useState } from "./html.js";
import { call, hasSession, signOut } from "./api.js";
import { listen } from "./events.js";
import { Guard } from "./parts.js";
import { QueueView } from "./views/queue.js";
import { JobView } from "./views/job.js";
import { SamplesView } from "./views/samples.js";
import { CompareView } from "./views/compare.js";
import { HistoryView } from "./views/history.js";
import { SuiteView, SuitesView } from "./views/suites.js";
import { SubmitView } from "./views/submit.js";
import { SignInView } from "./views/signin.js";

const ID = "([0-9a-f-]{36})";
const ROUTES = [
  [/^\/(?:jobs)?$/, QueueView, "Jobs"],
  [new RegExp(`^/jobs/${ID}$`), JobView, "Job"],
  [new RegExp(`^/jobs/${ID}/samples$`), SamplesView, "Samples"],
  [/^\/compare$/, CompareView, "Compare"],
  [/^\/suites$/, SuitesView, "Suites"],
  [new RegExp(`^/suites/${ID}$`), SuiteView, "Suite run"],
  [/^\/history$/, HistoryView, "History"],
  [/^\/submit$/, SubmitView, "Submit"],
  [/^\/signin$/, SignInView, "Sign in"],
];
const LINKS = [["/", "Jobs"], ["/suites", "Suites"], ["/history", "History"], ["/compare", "Compare"], ["/submit", "Submit"]];

// Show another view of this page.
export function go(url, isReplaced = false) {
  const isAnother = new URL(url, location).pathname !== location.pathname;
  history[isReplaced ? "replaceState" : "pushState"](null, "", url);
  dispatchEvent(new PopStateEvent("popstate"));
  if (isAnother) scrollTo(0, 0);
}

addEventListener("click", (event) => {
  const link = event.target.closest("a");
  const isPlain = event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
  if (!link || !isPlain || link.target || link.hasAttribute("download") || link.origin !== location.origin) return;
  if (!ROUTES.some(([pattern]) => pattern.test(link.pathname))) return;
  event.preventDefault();
  go(link.href);
});

function App() {
  const [url, setUrl] = useState(location.href);
  const [caller, setCaller] = useState(null);
  const [canSignOut, setCanSignOut] = useState(false);
  const [online, setOnline] = useState(true);
  useEffect(() => {
    const follow = () => setUrl(location.href);
    addEventListener("popstate", follow);
    return () => removeEventListener("popstate", follow);
  }, []);
  useEffect(() => listen((event) => {
    if (event.type === "ONLINE" || event.type === "OFFLINE") setOnline(event.type === "ONLINE");
  }), []);
  useEffect(() => {
    call("GetCaller").then(setCaller, (error) => {
      if (error.code === "unauthenticated" && location.pathname !== "/signin") {
        go(`/signin?next=${encodeURIComponent(location.pathname + location.search)}`, true);
      }
    });
    hasSession().then(setCanSignOut, () => setCanSignOut(false));
  }, [new URL(url).pathname === "/signin"]);

  const { pathname, searchParams } = new URL(url);
  const [pattern, View, title] = ROUTES.find(([each]) => each.test(pathname)) || [null, NotFound, "Nothing here"];
  useEffect(() => {
    document.title = `${title} · evalrpc`;
    document.querySelector("main")?.focus({ preventScroll: true });
  }, [pathname]);
  const parts = pattern ? pathname.match(pattern).slice(1) : [];
  return html`
    <a class="skip" href="#main">Skip to the content</a>
    <header>
      <a class="brand" href="/">evalrpc</a>
      <nav aria-label="Views">
        ${LINKS.map(([href, name]) => html`<a href=${href} aria-current=${href === pathname ? "page" : undefined}>${name}</a>`)}
      </nav>
      <span class="spacer"></span>
      ${!online && html`<span class="offline" role="status">not connected, trying again</span>`}
      ${caller && caller.owner && html`<span class="caller">${caller.owner}</span>`}
      ${caller && canSignOut && html`
        <button type="button" class="plain" onClick=${() => signOut().then(() => location.assign("/signin"))}>Sign out</button>`}
    </header>
    <main id="main" tabindex="-1">
      <${Guard} key=${pathname} what="This view"><${View} parts=${parts} query=${searchParams} caller=${caller} /><//>
    </main>`;
}

const NotFound = () => html`<h1>Nothing here</h1><p>There is no such view. <a href="/">All jobs</a></p>`;

render(html`<${App} />`, document.getElementById("app"));
