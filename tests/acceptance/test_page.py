"""The page, in a real browser, on a real server."""

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import Tabs, needs_browser, open_browser
from callers import add_token
from http_calls import path_of
from identity_provider import AUDIENCE, IdentityProvider
from lasting_ports import lasting_address
from nginx import Nginx
from serving import COMPLETED, FAILED, Api, ServerHere, Site
from waiting import eventually

from evalrpc.v1 import jobs_pb2 as pb

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

pytestmark = needs_browser

Serve = Callable[..., ServerHere]
HTTP = {"http_listen": "127.0.0.1:0"}
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SVG = "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'><script>document.title=3</script></svg>"
EVIL = '<img src=x onerror="document.title=1"><script>document.title=2</script>'


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.kill_runs()


@pytest.fixture
def start(site: Site) -> Iterator[Serve]:
    """Start a server in this process."""
    servers: list[ServerHere] = []

    def start(**flags: object) -> ServerHere:
        servers.append(ServerHere(site.settings(**{**HTTP, **flags})))
        return servers[-1]

    yield start
    for server in servers:
        server.start_no_more()
        site.release()
        eventually(lambda server=server: server.idle, "for the runs to end")
        server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def tabs(browser: "Browser", start: Serve, site: Site) -> Iterator[Tabs]:
    """Tabs at a server with a suite."""
    with site.config.open("a") as config:
        config.write("[[suites.release.entries]]\nharness = 'toy'\ntasks = ['t']\nthreshold = 0.4\n")
    server = start()
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tabs = Tabs(context, url_of(server))
    tabs.api = server.api  # type: ignore[attr-defined]
    yield tabs
    context.close()


def url_of(server: ServerHere) -> str:
    return server.server.http_listeners[0].address


def api_of(tabs: Tabs) -> Api:
    api: Api = tabs.api  # type: ignore[attr-defined]
    return api


def write_samples(api: Api, job: pb.JobInfo, *samples: Mapping[str, object]) -> Path:
    """Replace the samples of a job, and return their folder."""
    folder = Path(api.get(job.job_id).attempts[0].output_dir) / "toy"
    (folder / "20260101_000000_samples_t.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return folder


def overflows(page: "Page") -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > innerWidth"))


def serious_findings(page: "Page") -> list[str]:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['help']}" for each in found if each["impact"] in ("serious", "critical")]


@pytest.mark.slow
def test_every_view_shows_what_there_is_and_is_usable_by_all(tabs: Tabs) -> None:
    api = api_of(tabs)
    good, better = (api.run(model, labels={"run": "a", "step": str(step)}) for step, model in enumerate(("good", "better")))
    for job, values in ((good, (0, 1, 1, 0)), (better, (1, 1, 1, 0))):
        answers = ({"question": "2 + 2?", "target": "4", "acc": value, "right": value == 1} for value in values)
        write_samples(api, job, *({"doc_id": place, **answer} for place, answer in enumerate(answers)))
    failed = api.run("no_such_model")
    assert (good.status, failed.status) == (COMPLETED, FAILED)
    run = api.SubmitSuite(suite="release", request=pb.EvaluateRequest(model="good", num_gpus=0), labels={"run": "b"})
    eventually(lambda: api.GetSuiteRun(suite_run_id=run.suite_run_id).status == COMPLETED)
    views = {
        "/": "no_such_model",
        f"/jobs/{good.job_id}": "0.5",
        f"/jobs/{failed.job_id}": "KeyError",
        f"/jobs/{good.job_id}/samples": "2 + 2?",
        f"/compare?baseline={good.job_id}&candidate={better.job_id}": "Sample 0: 0 → 1",
        "/suites": "1 of 1",
        f"/suites/{run.suite_run_id}": "INCONCLUSIVE",
        "/history": "acc none",
        f"/submit?copy={good.job_id}": "Submit a copy",
        "/signin": "Token",
    }
    page = tabs.open("/")
    for path, text in views.items():
        page.goto(tabs.url + path)
        page.get_by_text(text).first.wait_for()
        assert page.evaluate("scrollY") == 0, path
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 800})
            assert not overflows(page), (path, width)
        page.set_viewport_size({"width": 1280, "height": 900})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert not serious_findings(page), (path, scheme)
    assert not tabs.problems


def test_on_a_phone_all_of_a_job_is_in_the_list_without_scrolling_sideways(tabs: Tabs) -> None:
    api_of(tabs).run("no_such_model", labels={"step": "100"})
    page = tabs.open("/")
    page.set_viewport_size({"width": 390, "height": 800})
    for text in ("failed", "no_such_model", "step=100", "nobody"):
        place = page.get_by_role("row").get_by_text(text, exact=True).first.bounding_box()
        assert place, text
        assert 0 <= place["x"] <= place["x"] + place["width"] <= 390, text


def test_jobs_appear_and_change_as_they_do_through_a_restart_of_the_server(
    browser: "Browser", start: Serve, site: Site
) -> None:
    address = lasting_address()
    server = start(http_listen=address)
    context = browser.new_context()
    page = Tabs(context, url_of(server)).open("/")
    page.get_by_text("No jobs here").wait_for()
    job = server.api.submit("slow")
    row = page.locator("tr", has=page.locator(f'a[href="/jobs/{job.job_id}"]'))
    row.get_by_text("running").wait_for()
    row.get_by_text("1 of 4").wait_for()
    server.stop()
    page.get_by_text("not connected").wait_for()
    start(http_listen=address)
    site.release(job.job_id)
    row.get_by_text("completed").wait_for()
    page.get_by_text("not connected").wait_for(state="detached")
    context.close()


@pytest.mark.slow
def test_thirty_tabs_share_one_stream_and_another_takes_over_when_its_tab_is_closed(tabs: Tabs) -> None:
    pages = [tabs.open("/") for _ in range(30)]
    for page in pages:
        page.get_by_text("No jobs here").wait_for()
    first = api_of(tabs).submit("good")
    for page in pages:
        page.locator(f'a[href="/jobs/{first.job_id}"]').wait_for()
    for page in pages[:15]:
        page.close()
    second = api_of(tabs).submit("good")
    for page in pages[15:]:
        page.locator(f'a[href="/jobs/{second.job_id}"]').wait_for()
    assert not tabs.problems


def test_a_status_in_a_url_counts_in_small_letters_too(tabs: Tabs) -> None:
    api_of(tabs).run("good")
    for path, empty in (("/?status=queued", "No jobs here"), ("/suites?status=queued", "No suite runs here")):
        page = tabs.open(path)
        page.get_by_text(empty).wait_for()
        assert page.get_by_label("Status").input_value() == "QUEUED"
    assert not tabs.problems


def test_jobs_without_a_step_are_drawn_in_order_of_creation_and_never_at_step_0(tabs: Tabs) -> None:
    api = api_of(tabs)
    for _ in range(2):
        api.run("good")
    page = tabs.open("/history")
    page.get_by_role("img", name="of 1 runs, by job, in order of creation").wait_for()
    api.run("good", labels={"run": "a", "step": "100"})
    page.reload()
    page.get_by_role("img", name="of 1 runs, by step").wait_for()  # the other is in the table
    assert page.locator('a[href^="/jobs/"]').count() == 3
    assert not tabs.problems


def test_the_log_is_followed_and_a_job_can_be_cancelled(tabs: Tabs) -> None:
    job = api_of(tabs).submit("slow")
    page = tabs.open(f"/jobs/{job.job_id}")
    page.get_by_role("button", name="Show, as it grows").click()
    page.get_by_label("Log", exact=True).get_by_text("ready").wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.locator("h1").get_by_text("cancelled").wait_for()
    assert not tabs.problems


def test_the_form_says_what_is_wrong_while_one_types_and_then_submits(tabs: Tabs) -> None:
    page = tabs.open("/submit")
    page.get_by_label("Model type").fill("good")
    page.get_by_label("Tasks").fill("t")
    page.get_by_label("GPUs").fill("7")
    page.get_by_text("asks for 7 GPUs, and this server has 2").wait_for()
    for text, problem in (('{"a": ', "is no valid JSON"), ("a=1,b", "b is not of the form NAME=VALUE")):
        page.get_by_label("Model arguments").fill(text)
        page.get_by_text(problem).wait_for()
    page.get_by_role("button", name="Submit", exact=True).click()
    page.get_by_label("GPUs").fill("0")
    page.get_by_text("asks for 7 GPUs").wait_for(state="detached")
    page.get_by_role("button", name="Submit", exact=True).click()
    page.get_by_label("Model arguments").fill("a=1")
    page.get_by_text("NAME=VALUE with commas between them, or JSON").wait_for()
    page.get_by_label("Labels").fill("run=x, step=5")
    page.get_by_role("button", name="Submit", exact=True).click()
    page.locator("h1").get_by_text("completed").wait_for()
    (job,) = api_of(tabs).ListJobs().jobs
    assert (job.request.model, dict(job.labels), dict(job.request.model_args)) == ("good", {"run": "x", "step": "5"}, {"a": 1})


def test_samples_are_found_among_all_and_their_images_shown(tabs: Tabs) -> None:
    api = api_of(tabs)
    job = api.run("good")
    rows = [{"doc_id": number, "acc": number % 2, "resps": [[f"answer {number}"]]} for number in range(200)]
    rows[150] |= {"input_media": ["toy/a.png", PIXEL, SVG, "/etc/passwd"]}
    folder = write_samples(api, job, *rows)
    (folder / "a.png").write_bytes(base64.b64decode(PIXEL.partition(",")[2]))
    page = tabs.open(f"/jobs/{job.job_id}/samples")
    page.get_by_text("50 on this page").wait_for()
    page.get_by_label("Text").fill("Answer 15")
    page.get_by_label("Score").select_option("acc")
    page.get_by_label("to", exact=True).fill("0")
    page.get_by_role("button", name="Find").click()
    page.get_by_text("5 found").wait_for()
    assert "metric=acc" in page.url
    sample = page.locator("article", has_text="Sample 150")
    sample.get_by_role("img").nth(1).wait_for()
    assert sample.get_by_role("img").evaluate_all("images => images.map(image => image.naturalWidth)") == [1, 1]
    sample.get_by_text("outside of the job's folder").wait_for()
    with page.expect_download() as download:
        sample.get_by_role("link", name="input_media[2]").click()
    assert b"<script>" in Path(download.value.path()).read_bytes()
    assert page.title() == "Samples · evalrpc"
    page.get_by_role("link", name="All", exact=True).click()
    page.get_by_text("50 on this page").wait_for()
    assert not tabs.problems


def test_what_can_not_be_drawn_leaves_all_around_it_as_it_is(tabs: Tabs) -> None:
    job = api_of(tabs).run("good")
    write_samples(api_of(tabs), job, *({"doc_id": number, "acc": 1} for number in range(3)))

    def answer_with(change: Callable[[dict[str, Any]], object]) -> Callable[["Route"], None]:
        def answer(route: "Route") -> None:
            message = route.fetch().json()
            change(message)
            route.fulfill(json=message)

        return answer

    page = tabs.open("/")
    page.route("**/ListSamples", answer_with(lambda listed: listed["samples"].__setitem__(1, None)))
    page.goto(f"{tabs.url}/jobs/{job.job_id}/samples")
    page.get_by_role("alert").get_by_text("A sample can't be shown").wait_for()
    assert page.locator("article h3").all_inner_texts() == ["Sample 0", "Sample 2"]
    page.route("**/GetQueue", answer_with(lambda queue: queue.update(gpus=[None])))
    page.get_by_role("link", name="Jobs", exact=True).click()
    page.get_by_role("alert").get_by_text("This view can't be shown").wait_for()
    page.get_by_role("link", name="History").click()
    page.get_by_role("heading", name="History").wait_for()
    assert len(tabs.problems) == 2, "the console has what was wrong"


def test_suite_runs_are_listed_and_change_as_their_jobs_do(tabs: Tabs, site: Site) -> None:
    api = api_of(tabs)
    run = api.SubmitSuite(suite="release", request=pb.EvaluateRequest(model="slow", num_gpus=0), labels={"run": EVIL[:60]})
    page = tabs.open("/suites?suite=release")
    row = page.locator("tr", has=page.locator(f'a[href="/suites/{run.suite_run_id}"]'))
    row.get_by_text("0 of 1").wait_for()
    site.release(run.jobs[0].job_id)
    row.get_by_text("1 of 1").wait_for()
    row.get_by_text("completed").wait_for()
    row.get_by_role("link").click()
    page.get_by_role("region", name="Findings").get_by_text("acc").wait_for()
    page.get_by_role("region", name="Jobs").get_by_role("link").click()
    page.get_by_role("link", name=run.suite_run_id[:8]).wait_for()
    assert not tabs.problems


def test_nothing_of_a_hostile_job_runs(tabs: Tabs, site: Site) -> None:
    job = api_of(tabs).SubmitJob(
        pb.SubmitJobRequest(
            request=pb.EvaluateRequest(harness="toy", model="good", tasks=["t"], num_gpus=0), labels={"run": EVIL[:60]}
        )
    )
    api_of(tabs).wait_for(job.job_id, COMPLETED)
    sample = {
        "image": [SVG, EVIL],
        "doc_id": EVIL,
        "target": EVIL,
        "resps": [[EVIL]],
        "input": [{"role": EVIL, "content": EVIL}],
        "acc": 0,
    }
    folder = write_samples(api_of(tabs), job, sample)
    (folder / f"{EVIL.replace('/', '')[:80]}.html").write_text(EVIL)
    page = tabs.open(f"/jobs/{job.job_id}")
    page.get_by_role("link", name="Samples", exact=True).click()
    page.get_by_role("heading", name="Sample <img").wait_for()
    assert page.title() == "Samples · evalrpc"
    page.go_back()
    with page.expect_download():
        page.locator("section", has_text="Files").locator("a", has_text="img src").click()
    assert page.title() == "Job · evalrpc"
    assert not tabs.problems


def test_a_browser_that_has_to_sign_in_is_sent_there_and_back(browser: "Browser", start: Serve, site: Site) -> None:
    server = start(auth="required")
    token = add_token(site.folder / "data", "alice")
    context = browser.new_context()
    page = Tabs(context, url_of(server)).open("/history")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="History").wait_for()
    page.get_by_text("alice").wait_for()
    assert not page.evaluate("document.cookie"), "no script can read it"
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Sign in").wait_for()
    context.close()


# The location of docs/operating.md, before which a proxy has signed whoever has its cookie in.
PROXY_RULES = """
    listen {{address}};
    set $jwt "";
    if ($cookie_proxy = "alice") {{{{ set $jwt "{token}"; }}}}
    proxy_set_header X-Auth-Jwt $jwt;
    {location}
"""


def proxy_rules(token: str) -> str:
    """Return rules for nginx, with the location that docs/operating.md has."""
    page = Path(__file__).parents[2] / "docs" / "operating.md"
    (location,) = re.findall(r"location / \{\n\s+proxy_pass.*?\}", page.read_text(), re.DOTALL)
    location = location.replace("{", "{{").replace("}", "}}").replace("http://127.0.0.1:8080", "http://{upstream}")
    return PROXY_RULES.format(
        token=token,
        location=location.replace("proxy_set_header Host", "proxy_set_header X-Auth-Jwt $jwt;\n        proxy_set_header Host"),
    )


def test_a_browser_that_a_proxy_signs_in_needs_no_token(browser: "Browser", start: Serve, site: Site, tmp_path: Path) -> None:
    with IdentityProvider() as provider:
        with site.config.open("a") as config:
            config.write(
                f'[oidc]\nissuer = "{provider.issuer}"\naudience = "{AUDIENCE}"\nrole = "submitter"\n'
                f'jwks_url = "{provider.issuer}/keys"\n'
                '[[http_listen]]\naddress = "127.0.0.1:0"\nauth = "required"\nproxy_token_header = "X-Auth-Jwt"\n'
            )
        server = start(http_listen=None)
        upstream = url_of(server).removeprefix("http://")
        with Nginx(tmp_path / "nginx", upstream, proxy_rules(provider.token())) as nginx:
            context = browser.new_context()
            tabs = Tabs(context, f"http://{nginx.address}")
            Tabs(context, tabs.url).open("/").get_by_label("Token").wait_for()  # the console has that it was not signed in
            context.add_cookies([{"name": "proxy", "value": "alice", "url": tabs.url}])
            queue = tabs.open("/")
            queue.get_by_text("alice").wait_for()
            queue.get_by_text("No jobs here").wait_for()
            assert not queue.get_by_role("button", name="Sign out").count(), "it would end nothing"
            page = tabs.open("/submit")
            page.get_by_label("Model type").fill("good")
            page.get_by_label("Tasks").fill("t")
            page.get_by_label("GPUs").fill("0")
            page.get_by_role("button", name="Submit", exact=True).click()
            page.locator("h1").get_by_text("completed").wait_for()
            queue.locator("tr").get_by_text("completed").wait_for()
            assert not tabs.problems
            with foreign_page() as elsewhere:
                assert not any(attack(context.new_page(), elsewhere, tabs.url).values())
            context.close()


# What a page of another server tries: to read, to submit with what the browser has, and to load what it may show.
ATTACK = """async ([url, get, submit, body, credentials]) => {
  const works = (attempt) => attempt.then(() => true, () => false);
  const loads = (name, place) => new Promise((done) => {
    const element = document.createElement(name);
    element.onload = () => done(true);
    element.onerror = () => done(false);
    element.src = url + place;
    document.body.append(element);
  });
  const json = { "Content-Type": "application/json" };
  const form = document.createElement("form");
  Object.assign(form, { method: "POST", action: url + submit, enctype: "text/plain", target: "frame" });
  form.append(Object.assign(document.createElement("input"), { name: body, value: "" }));
  document.body.append(Object.assign(document.createElement("iframe"), { name: "frame" }), form);
  form.submit();
  for (const type of ["text/plain", "application/x-www-form-urlencoded"]) {
    const headers = { "Content-Type": type };
    await works(fetch(url + submit, { method: "POST", mode: "no-cors", credentials, headers, body }));
  }
  return {
    reads: await works(fetch(url + get, { credentials }).then((answer) => answer.text())),
    submits: await works(fetch(url + submit, { method: "POST", credentials, headers: json, body })),
    events: await new Promise((done) => {
      const source = new EventSource(`${url}/v1/events`, { withCredentials: credentials === "include" });
      source.onopen = () => done(true);
      source.onerror = () => done(false);
    }),
    scripts: await loads("script", "/web/app.js"),
    images: await loads("img", get),
  };
}"""


@contextmanager
def foreign_page() -> Iterator[str]:
    """Serve an empty page, and yield its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://localhost:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def attack(page: "Page", elsewhere: str, url: str, credentials: str = "include") -> dict[str, bool]:
    """Return which attempts of a foreign page work."""
    page.goto(elsewhere)
    body = json.dumps({"request": {"model": "good", "tasks": ["t"], "numGpus": 0}, "labels": {"by": "attack"}})
    found: dict[str, bool] = page.evaluate(ATTACK, [url, path_of("ListJobs"), path_of("SubmitJob"), body, credentials])
    return found


@pytest.mark.parametrize("is_named", [False, True])
def test_a_page_of_another_server_can_neither_read_nor_submit_unless_the_operator_names_it(
    browser: "Browser", start: Serve, is_named: bool
) -> None:
    with foreign_page() as elsewhere:
        server = start(http_origins=[elsewhere] if is_named else [])
        context = browser.new_context()
        found = attack(context.new_page(), elsewhere, url_of(server), "omit" if is_named else "include")
        context.close()
    assert found == {"reads": is_named, "submits": is_named, "events": is_named, "scripts": False, "images": False}
    assert [dict(job.labels) for job in server.api.ListJobs().jobs] == [{"by": "attack"}] * is_named
