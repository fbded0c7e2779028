"""Traces of jobs, from the client's span to the end of the last attempt, also across restarts."""

import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from serving import CANCELLED, COMPLETED, RUNNING, Api, ServerHere, Site
from waiting import eventually

from evalrpc.jobs.trace_context import TraceContext
from evalrpc.server.telemetry import traces
from evalrpc.v1 import jobs_pb2 as pb

Serve = Callable[..., ServerHere]
CLIENT = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "01")
SUBMIT = "evalrpc.v1.EvaluationService/SubmitJob"


class Spans:
    """What servers in this process have recorded."""

    def __init__(self) -> None:
        self._exporters: list[InMemorySpanExporter] = []

    def processor(self, _: object) -> SimpleSpanProcessor:
        """Return what records the spans of one server, which closes it."""
        self._exporters.append(InMemorySpanExporter())
        return SimpleSpanProcessor(self._exporters[-1])

    def named(self, name: str, count: int = 1) -> list[ReadableSpan]:
        """Wait until there are so many spans of a name, and return them in the order of their ends."""

        def found() -> list[ReadableSpan]:
            finished = (span for exporter in self._exporters for span in exporter.get_finished_spans())
            spans = [span for span in finished if span.name == name]
            return spans if len(spans) >= count else []

        spans = eventually(found, f"for {count} spans {name}")
        assert len(spans) == count
        return spans


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    spans = Spans()
    monkeypatch.setattr(traces, "BatchSpanProcessor", spans.processor)
    return spans


def submit(api: Api, model: str, context: TraceContext | None = CLIENT, **fields: object) -> pb.JobInfo:
    api.metadata = (("traceparent", str(context)),) if context else ()
    job = api.submit(model, **fields)
    api.metadata = ()
    return job


def ids_of(span: ReadableSpan) -> tuple[str, str]:
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


def test_a_trace_leads_from_the_client_to_the_run(serve: Serve, spans: Spans) -> None:
    api = serve(traces="otlp").api
    job = api.wait_for(submit(api, "good").job_id, COMPLETED)
    (attempt,) = job.attempts
    (call,) = spans.named(SUBMIT)
    (wait,), (ran,) = spans.named("wait in the queue"), spans.named("attempt")
    assert ids_of(call)[0] == ids_of(wait)[0] == ids_of(ran)[0] == CLIENT.trace_id == attempt.trace_id
    assert f"{call.parent.span_id:016x}" == CLIENT.span_id
    assert wait.parent.span_id == ran.parent.span_id == call.context.span_id
    assert job.traceparent == f"00-{CLIENT.trace_id}-{ids_of(call)[1]}-01"
    assert ids_of(ran)[1] == attempt.span_id
    assert (wait.start_time, wait.end_time) == (job.created_at.ToNanoseconds(), attempt.started_at.ToNanoseconds())
    assert (ran.start_time, ran.end_time) == (attempt.started_at.ToNanoseconds(), attempt.completed_at.ToNanoseconds())
    assert ran.attributes["evalrpc.job_id"] == job.job_id


def test_a_run_finds_its_span_in_its_environment(serve: Serve, site: Site, spans: Spans) -> None:
    api = serve(traces="otlp").api
    job = api.wait_for(submit(api, "shows_trace").job_id, COMPLETED)
    assert f"trace: 00-{CLIENT.trace_id}-{job.attempts[0].span_id}-01\n" in site.log_of(job.job_id)


def test_an_attempt_keeps_its_span_across_a_restart(serve: Serve, site: Site, spans: Spans) -> None:
    first = serve(traces="otlp")
    job_id = submit(first.api, "slow").job_id
    begun = first.api.wait_for(job_id, RUNNING).attempts[0]
    first.stop()
    second = serve(traces="otlp")
    site.release()
    job = second.api.wait_for(job_id, COMPLETED)
    (ran,) = spans.named("attempt")
    assert ids_of(ran) == (begun.trace_id, begun.span_id) == (job.attempts[0].trace_id, job.attempts[0].span_id)
    assert ran.start_time == begun.started_at.ToNanoseconds()


@pytest.mark.usefixtures("long_backoff")
def test_each_attempt_and_wait_has_a_span(serve: Serve, site: Site, spans: Spans) -> None:
    api = serve(traces="otlp").api
    job_id = submit(api, "slow", max_attempts=2).job_id
    api.wait_for(job_id, RUNNING)
    site.wait_for_log(job_id)
    site.kill_run(job_id)
    (first,) = spans.named("attempt")
    assert not first.status.is_ok
    api.CancelJob(job_id=job_id, reason="enough")
    job = api.wait_for(job_id, CANCELLED)
    waits = spans.named("wait in the queue", 2)
    assert waits[1].start_time == job.attempts[0].completed_at.ToNanoseconds()
    assert waits[1].end_time == job.completed_at.ToNanoseconds()
    assert waits[1].attributes["evalrpc.status"] == "CANCELLED"


@pytest.mark.parametrize("header", [None, "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01"])
def test_a_call_without_a_trace_begins_one(serve: Serve, spans: Spans, header: str | None) -> None:
    api = serve(traces="otlp").api
    api.metadata = (("traceparent", header),) if header else ()
    job = api.submit("good")
    (call,) = spans.named(SUBMIT)
    assert call.parent is None
    assert job.traceparent.split("-")[1] == ids_of(call)[0]


def test_what_the_client_does_not_record_is_not_recorded_here(serve: Serve, site: Site, spans: Spans) -> None:
    api = serve(traces="otlp").api
    unrecorded = api.wait_for(submit(api, "shows_trace", CLIENT._replace(flags="00")).job_id, COMPLETED)
    assert "-00\n" in site.log_of(unrecorded.job_id)
    api.wait_for(submit(api, "good").job_id, COMPLETED)
    assert len(spans.named("attempt")) == 1


def test_what_is_logged_of_an_attempt_has_its_ids(serve: Serve, spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    from evalrpc.server.logging import _add_trace

    caplog.handler.addFilter(_add_trace)
    caplog.set_level("INFO")
    api = serve(traces="otlp").api
    job = api.wait_for(submit(api, "good").job_id, COMPLETED)
    of_job = [
        record for record in caplog.records if getattr(record, "job_id", "") == job.job_id and hasattr(record, "trace_id")
    ]
    assert {record.span_id for record in of_job} == {job.attempts[0].span_id}
    caplog.handler.removeFilter(_add_trace)


def test_without_traces_there_is_nothing_of_them(serve: Serve, site: Site, spans: Spans) -> None:
    api = serve().api
    job = api.wait_for(submit(api, "shows_trace").job_id, COMPLETED)
    assert (job.traceparent, job.attempts[0].trace_id, job.attempts[0].span_id) == ("", "", "")
    assert "trace: none\n" in site.log_of(job.job_id)


class Collector:
    """Takes spans over OTLP."""

    def __init__(self) -> None:
        self.names: list[str] = []
        names = self.names

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    names.extend(span.name for scope in resource.scope_spans for span in scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


def test_a_stop_sends_what_is_left(serve: Serve, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server.server_port}")
    server = serve(traces="otlp")
    server.api.wait_for(submit(server.api, "good").job_id, COMPLETED)
    server.stop()
    assert sorted(collector.names) == ["attempt", SUBMIT, "wait in the queue"]


def test_a_call_over_http_has_the_same_trace(serve: Serve, spans: Spans) -> None:
    server = serve(traces="otlp", http_listen="127.0.0.1:0")
    body = json.dumps({"request": {"harness": "toy", "model": "good", "tasks": ["t"], "numGpus": 0}}).encode()
    headers = {"content-type": "application/json", "traceparent": str(CLIENT)}
    request = urllib.request.Request(f"http://{server.server.http_listeners[0].listener.address}/{SUBMIT}", body, headers)
    with urllib.request.urlopen(request) as answer:
        job = json.load(answer)
    assert job["traceparent"].split("-")[1] == CLIENT.trace_id
    (call,) = spans.named(SUBMIT)
    assert f"{call.parent.span_id:016x}" == CLIENT.span_id
