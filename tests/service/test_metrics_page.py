"""The metrics of a server, as Prometheus reads them."""

import json
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from engine_site import Models, ended, submit
from postgres_cluster import shared_cluster
from prometheus_client.parser import text_string_to_metric_families
from serving import COMPLETED, FAILED, NOWHERE, RUNNING, TERMINAL, MovableClock, ServerHere, Site
from waiting import DEADLINE_SECONDS as SECONDS
from waiting import eventually

from evalrpc.config.addresses import PortAddress
from evalrpc.errors import ConfigurationError
from evalrpc.server.telemetry.job_metrics import REASONS

Serve = Callable[..., ServerHere]
DASHBOARDS = Path(__file__).parents[2] / "dashboards"
METRIC = re.compile(r"\b(?:evalrpc|process|rpc_server)_[a-z_]+\b")
METHOD = "evalrpc.v1.EvaluationService/"


class Page:
    """The metrics of a server."""

    def __init__(self, server: ServerHere) -> None:
        self._address = server.server.metrics_address

    def text(self) -> str:
        with urllib.request.urlopen(f"http://{self._address}/metrics") as answer:
            return str(answer.read().decode())

    def value(self, name: str, **labels: str) -> float:
        """Return the value of a metric; 0 if it has none with these labels."""
        families = text_string_to_metric_families(self.text())
        samples = [sample for family in families for sample in family.samples]
        return sum(sample.value for sample in samples if sample.name == name and sample.labels.items() >= labels.items())

    def names(self) -> set[str]:
        """Return the names of all metrics, as queries may have them."""
        names: set[str] = set()
        for family in text_string_to_metric_families(self.text()):
            names |= {sample.name for sample in family.samples}
            suffixes = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",)}.get(family.type, ("",))
            names |= {family.name + suffix for suffix in suffixes}
        return names


@pytest.fixture
def measured(serve: Serve) -> ServerHere:
    return serve(metrics_listen="0")


@pytest.fixture
def page(measured: ServerHere) -> Page:
    return Page(measured)


def test_jobs_are_counted_as_they_go(measured: ServerHere, page: Page, site: Site, clock: MovableClock) -> None:
    api = measured.api
    assert api.run("good").status == COMPLETED
    assert (failed := api.run("fails")).status == FAILED
    running = api.submit("slow", request={"num_gpus": 2})
    api.wait_for(running.job_id, RUNNING)
    waiting = api.submit("good", request={"num_gpus": 1})
    clock.move_ahead(100)
    text = page.text()
    assert page.value("evalrpc_jobs_submitted_total", harness="toy") == 4
    assert page.value("evalrpc_jobs", status="completed") == 1
    assert page.value("evalrpc_jobs", status="running") == page.value("evalrpc_jobs", status="queued") == 1
    assert 100 <= page.value("evalrpc_job_oldest_queued_age_seconds") < 200
    assert page.value("evalrpc_gpus", state="job") == 2
    assert page.value("evalrpc_gpus", state="free") == 0
    assert page.value("evalrpc_jobs_finished_total", status="failed", reason=failed.error.reason) == 1
    assert page.value("evalrpc_attempt_duration_seconds_count", outcome="completed") == 1
    assert page.value("evalrpc_attempt_duration_seconds_count", outcome="failed") == 1
    assert page.value("evalrpc_job_queue_wait_seconds_count", harness="toy") == 3
    assert page.value("evalrpc_store_commit_duration_seconds_count") >= 4
    assert page.value("process_open_fds") > 0
    site.release()
    api.wait_for(waiting.job_id, *TERMINAL)
    assert page.value("evalrpc_job_oldest_queued_age_seconds") == 0
    assert page.value("evalrpc_job_queue_wait_seconds_sum") >= 100
    assert not any(label in text for label in (running.job_id, "slow", "job_id", "owner"))


def test_calls_are_timed_by_method_and_code(measured: ServerHere, page: Page) -> None:
    job = measured.api.run("good")
    with pytest.raises(grpc.RpcError):
        measured.api.GetJob(job_id=NOWHERE)
    list(measured.api.watch(job.job_id))

    def count(method: str, code: str) -> float:
        labels = {"rpc_system_name": "grpc", "rpc_method": METHOD + method, "rpc_response_status_code": code}
        return page.value("rpc_server_call_duration_seconds_count", **labels)

    assert count("GetJob", "OK") >= 1
    assert count("GetJob", "NOT_FOUND") == 1
    eventually(lambda: count("WatchJob", "OK") == 1, "for the stream to end")


def test_watchers_are_counted_while_they_watch(measured: ServerHere, page: Page, site: Site) -> None:
    job = measured.api.submit("slow")
    one, all_jobs = measured.api.watch(job.job_id), measured.api.WatchJobs()
    next(one)
    next(all_jobs)
    eventually(lambda: page.value("evalrpc_watchers", stream="job") == 1)
    eventually(lambda: page.value("evalrpc_watchers", stream="jobs") == 1)
    assert page.value("evalrpc_open_streams") == 2
    one.cancel()  # type: ignore[attr-defined]
    eventually(lambda: page.value("evalrpc_watchers", stream="job") == 0)
    site.release()


def test_an_attempt_that_another_server_began_is_counted_by_the_one_that_ends_it(serve: Serve, site: Site) -> None:
    first = serve()
    job = first.api.submit("slow")
    queued = [first.api.submit("slow", request={"num_gpus": 2}) for _ in range(2)]
    first.api.wait_for(job.job_id, RUNNING)
    first.start_no_more()
    first.stop()
    second = serve(metrics_listen="127.0.0.1:0")
    page = Page(second)
    site.release()
    for each in (job, *queued):
        second.api.wait_for(each.job_id, COMPLETED)
    assert page.value("evalrpc_attempt_duration_seconds_count", outcome="completed") == 3
    assert page.value("evalrpc_jobs_submitted_total") == 0


@pytest.mark.usefixtures("engines")
def test_answers_of_engines_are_counted(serve: Serve, models: Models) -> None:
    server = serve(metrics_listen="0")
    page = Page(server)
    assert ended(server.api, submit(server.api, models.make(), count=3)).status == COMPLETED
    assert page.value("evalrpc_gateway_requests_total", engine="stub", result="answered") == 3
    assert page.value("evalrpc_gateway_tokens_total", engine="stub", direction="completion") > 0
    assert page.value("evalrpc_engines", engine="stub", state="ready") == 1
    assert ended(server.api, submit(server.api, models.make("other"), count=2)).status == COMPLETED
    assert page.value("evalrpc_gateway_requests_total", engine="stub", result="answered") == 5


def test_dashboard_and_alerts_name_only_metrics_that_there_are(measured: ServerHere, page: Page) -> None:
    measured.api.run("good")
    dashboard = json.loads((DASHBOARDS / "evalrpc.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [variable["query"] for variable in dashboard["templating"]["list"]]
    queries.append((DASHBOARDS / "alerts.yaml").read_text().replace("instance", ""))
    named = {name for query in queries for name in METRIC.findall(query)}
    eventually(lambda: page.value("rpc_server_call_duration_seconds_count"))
    known = page.names() | {"evalrpc_gateway_requests_total", "evalrpc_gateway_tokens_total"}
    assert named <= known
    assert len(named) > 20


def test_every_reason_of_the_schema_is_a_label() -> None:
    schema = (DASHBOARDS.parent / "protos/evalrpc/v1/jobs.proto").read_text()
    (comment,) = re.findall(r"message JobError \{\n(.*?)string reason", schema, re.DOTALL)
    assert set(re.findall(r"`([A-Z][A-Z_]+)`", comment)) - {"UPPER_SNAKE"} == REASONS - {""}


def test_a_taken_port_is_said(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"^setting metrics_listen: can't listen on 127\.0\.0\.1:{port}: "):
            serve(metrics_listen=str(port))


@pytest.mark.parametrize("text", ["x", "unix:/tmp/x", "127.0.0.1:70000", "127.0.0.1", "-1"])
def test_what_is_no_address_is_refused(site: Site, text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^setting metrics_listen: must be PORT or HOST:PORT"):
        site.settings(metrics_listen=text)


def test_a_port_alone_is_one_of_loopback(site: Site) -> None:
    assert site.settings(metrics_listen="9464").metrics_listen == "127.0.0.1:9464"
    assert site.settings(metrics_listen="[::1]:9464").metrics_listen == str(PortAddress("[::1]", 9464))
    assert site.settings(metrics_listen="").metrics_listen == ""


def test_silent_clients_keep_nobody_from_the_page_for_long(measured: ServerHere, page: Page) -> None:
    host, _, port = measured.server.metrics_address.rpartition(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(20)]
    try:
        silent[-1].settimeout(SECONDS)
        assert silent[-1].recv(1) == b"", "a connection without room is closed at once"
    finally:
        for connection in silent:
            connection.close()
    eventually(lambda: _answers(page), "for the page to have room again")


def _answers(page: Page) -> bool:
    try:
        return "evalrpc_serving 1.0" in page.text()
    except (urllib.error.URLError, ConnectionError):
        return False


def test_a_server_without_metrics_loads_no_library_for_them() -> None:
    code = "import sys, evalrpc.server.app; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sums_over_several_servers_are_right(serve: Serve, site: Site) -> None:
    shared = {"metrics_listen": "0", "store": shared_cluster().schema_for(site.folder)}
    servers = [serve(**shared, host_name="alpha", max_running=3)]
    assert servers[0].api.run().status == COMPLETED  # it is the scheduler by then
    servers.append(serve(**shared, host_name="beta", gpus="1", max_running=2))
    eventually(lambda: len(servers[0].api.GetQueue().nodes) == 2, "for the other host to be known")
    pages = list(map(Page, servers))

    def total(name: str, **labels: str) -> float:
        return sum(page.value(name, **labels) for page in pages)

    jobs = [server.api.submit("slow", request={"num_gpus": gpus}) for server, gpus in zip(servers, (2, 1), strict=True)]
    for server in servers:
        for job in jobs:
            server.api.wait_for(job.job_id, RUNNING)
    assert [page.value("evalrpc_gpus", state="job") for page in pages] == [2, 1]
    assert [page.value("evalrpc_job_slots") for page in pages] == [3, 2]
    assert (total("evalrpc_jobs", status="running"), total("evalrpc_jobs", status="completed")) == (2, 1)
    assert [page.value("evalrpc_jobs_submitted_total") for page in pages] == [2, 1]
    site.release()
    for server in servers:
        for job in jobs:
            server.api.wait_for(job.job_id, COMPLETED)
    assert [page.value("evalrpc_jobs_finished_total", status="completed") for page in pages] == [2, 1]
    assert total("evalrpc_attempt_duration_seconds_count") == total("evalrpc_job_queue_wait_seconds_count") == 3
