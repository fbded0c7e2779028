"""How soon a change is seen over HTTP, by a bare reader of the stream and on the page in Chromium, and how soon the page shows
very many jobs. Needs Chromium."""

import http.client
import json
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.filling import fill
from benchmarks.processes import Server, evalrpc_server, free_port, workplace
from benchmarks.report import Row, at_most, ratio_at_most
from benchmarks.scale import Scale
from evalrpc.client import EvalClient
from evalrpc.protobuf.times import seconds_of
from evalrpc.v1.jobs_pb2 import JobEventType

if TYPE_CHECKING:
    from playwright.sync_api import Page

_CHANGES = 200
_FIRST = "-1"
"""The change before all that are measured: who has seen it watches."""
_JOBS = {"small": 1_000, "full": 100_000}
_MAX_PAGE_MS = 25.0
_MAX_VIEW_MS = 1000.0
_MAX_MEMORY_MB = 12.0
_VIEWS = 5
_WAIT_SECONDS = 30.0
_POLL_SECONDS = 0.02
_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
_OBSERVE = """
() => {
  let last = "";
  const look = () => {
    const cell = [...document.querySelectorAll("tbody td")].find((each) => each.textContent.startsWith("change="));
    const number = cell ? cell.textContent.slice("change=".length) : last;
    if (number === last) return;
    last = number;
    window.note(last);
  };
  new MutationObserver(look).observe(document.getElementById("app"), { subtree: true, childList: true, characterData: true });
}
"""


class _Seen:
    """When each change was committed, and when each reader has seen it, in seconds since 1970."""

    def __init__(self) -> None:
        self.committed: dict[str, float] = {}
        self.over_grpc: dict[str, float] = {}
        self.over_http: dict[str, float] = {}

    def latency_ms(self, seen: dict[str, float]) -> float:
        """Return the median time from a commit to when it was seen."""
        return statistics.median((seen[each] - self.committed[each]) * 1e3 for each in self.committed if each in seen)


def seen_over_http(scale: Scale) -> Iterator[Row]:
    """From the commit of a change of labels until it is seen: by a bare reader of `/v1/events`, by a watcher, on the page."""
    del scale
    with _server(queued=1) as (server, port, job_ids), _empty_page() as page:
        _show_jobs(page, port)
        seen, on_page = _Seen(), dict[str, float]()
        page.expose_function("note", lambda number: on_page.setdefault(number, time.time()))  # Chromium's clock is another
        page.evaluate(_OBSERVE)
        changing = threading.Thread(target=_change_and_watch, args=(server, port, job_ids[0], seen))
        changing.start()
        while changing.is_alive() or not on_page:
            page.wait_for_timeout(1)  # which takes the page's messages
        page.wait_for_timeout(1000)
    on_page.pop(_FIRST, None)
    bare, watcher = seen.latency_ms(seen.over_http), seen.latency_ms(seen.over_grpc)
    note = "yardstick: a watcher over gRPC of the same changes"
    yield Row("a change seen over HTTP, p50", "ms", bare, watcher, bare / watcher, aim=ratio_at_most(2.0), note=note)
    note = f"{len(on_page)} of {_CHANGES} changes were drawn; with the way from Chromium to here"
    yield Row(
        "a change seen on the page in Chromium, p50", "ms", seen.latency_ms(on_page), aim=at_most(_MAX_PAGE_MS), note=note
    )


def first_view(scale: Scale) -> Iterator[Row]:
    """The first view of the page, from its address to the table of jobs, and what it takes of an idle server."""
    count = _JOBS["full" if scale.name == "full" else "small"]
    with _server(queued=count) as (_, port, _ids):
        milliseconds = []
        for _ in range(_VIEWS):
            with _empty_page() as page:  # of a new browser, which has nothing of it yet
                begin = time.monotonic()
                _show_jobs(page, port)
                milliseconds.append((time.monotonic() - begin) * 1e3)
    yield Row(f"the first view of {count:,} jobs", "ms", statistics.median(milliseconds), aim=at_most(_MAX_VIEW_MS))


def at_rest(scale: Scale) -> Iterator[Row]:
    """The memory of an idle server with HTTP, page and metrics beside one without."""
    del scale
    with workplace() as folder:
        fill(folder / "all", queued=10)
        fill(folder / "plain", queued=10)
        flags = ("--http-listen", "127.0.0.1:0", "--metrics-listen", "0")
        with evalrpc_server(folder, "all", more=flags) as full, evalrpc_server(folder, "plain") as plain:
            ours, bare = full.memory() / 1e6, plain.memory() / 1e6
    note = "yardstick: the same server without"
    yield Row(
        "memory of an idle server with HTTP, page and metrics", "MB", ours, bare, aim=at_most(bare + _MAX_MEMORY_MB), note=note
    )


@contextmanager
def _server(queued: int) -> Iterator[tuple[Server, int, Sequence[str]]]:
    with workplace() as folder:
        job_ids, port = fill(folder / "data", queued=queued), free_port()
        with evalrpc_server(folder, gpus=0, more=("--http-listen", f"127.0.0.1:{port}")) as server:
            yield server, port, job_ids


@contextmanager
def _empty_page() -> Iterator["Page"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(_FLAGS))
        yield browser.new_page()
        browser.close()


def _show_jobs(page: "Page", port: int) -> None:
    """Have a page show the table of jobs."""
    page.goto(f"http://127.0.0.1:{port}/")
    page.locator("tbody tr").first.wait_for()


def _change_and_watch(server: Server, port: int, job_id: str, seen: _Seen) -> None:
    """Change the labels of a job again and again, while both readers watch."""
    with EvalClient(server.address) as client:
        revision = client.get_server_info().head_revision
        readers = [
            threading.Thread(target=read, args=(revision, seen), daemon=True)
            for read in (_grpc_reader(server), _http_reader(port))
        ]
        for reader in readers:
            reader.start()
        client.update_job(job_id, labels={"change": _FIRST})
        deadline = time.monotonic() + _WAIT_SECONDS
        while not (_FIRST in seen.over_grpc and _FIRST in seen.over_http):
            if time.monotonic() > deadline:
                raise RuntimeError("the readers do not watch")
            time.sleep(_POLL_SECONDS)
        for each in (seen.committed, seen.over_grpc, seen.over_http):
            del each[_FIRST]
        for number in range(_CHANGES):
            client.update_job(job_id, labels={"change": str(number)})
            time.sleep(_POLL_SECONDS)
        for reader in readers:
            reader.join(_WAIT_SECONDS)


def _grpc_reader(server: Server) -> Callable[[int, _Seen], None]:
    def read(revision: int, seen: _Seen) -> None:
        with EvalClient(server.address) as client:
            for event in client.watch_all(after_revision=revision):
                at = time.time()
                if event.type == JobEventType.JOB_EVENT_TYPE_UPDATED:
                    number = event.job.labels["change"]
                    seen.committed[number] = seconds_of(event.time)
                    seen.over_grpc[number] = at
                    if int(number) == _CHANGES - 1:
                        return

    return read


def _http_reader(port: int) -> Callable[[int, _Seen], None]:
    def read(revision: int, seen: _Seen) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", f"/v1/events?after_revision={revision}")
        answer = connection.getresponse()
        while line := answer.readline():
            at = time.time()
            if line.startswith(b"data: "):
                number = json.loads(line[6:]).get("job", {}).get("labels", {}).get("change", "")
                if number:
                    seen.over_http[number] = at
                if number == str(_CHANGES - 1):
                    return

    return read
