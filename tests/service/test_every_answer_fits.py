"""Every answer of every method fits into the 4 MiB that clients of gRPC accept by default, however much there is to say.

The methods are those of the schema. Whoever adds one says below how large its answers get, or the test of it fails.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import grpc
import pytest
from google.protobuf.message import Message
from large_jobs import largest_submission, pages, prepare, wide
from serving import BOOKMARK, TERMINAL, Api, ServerHere, Site, fields_of, reason_of
from waiting import eventually

from evalrpc.analysis import flips as flips_module
from evalrpc.analysis.flips import find_flips, read_flips
from evalrpc.files.read_budget import UNLIMITED, ReadBudget
from evalrpc.jobs.size_limits import MIB
from evalrpc.reading import sample_pages
from evalrpc.server import queue_listing
from evalrpc.server.engine_listing import listing
from evalrpc.v1 import evaluation_service_pb2 as calls
from evalrpc.v1 import jobs_pb2 as pb
from evalrpc.v1.comparison_pb2 import ListFlipsRequest
from evalrpc.v1.engines_pb2 import Engine
from evalrpc.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from evalrpc.v1.queue_pb2 import GetQueueResponse, Gpu, NodeState, OwnerShare
from evalrpc.v1.suites_pb2 import SUITE_RUN_VIEW_DECISION

MAX_ANSWER_BYTES: Final = 4 * MIB
METHODS: Final = [
    method for method in calls.DESCRIPTOR.services_by_name["EvaluationService"].methods if method.output_type.fields
]
SUITES: Final = 14
SUITE_TEXT_BYTES: Final = 250_000
LONG_ID: Final = "i" * 2_500_000
CUT_OF_LONG_ID: Final = ("doc_id", "baseline_sample.doc_id", "candidate_sample.doc_id")


class World:
    """A server with a default channel, and jobs that left as much as they could."""

    def __init__(self, site: Site, server: ServerHere) -> None:
        self.site, self.server, self.data_dir = site, server, site.folder / "data"
        self.api = Api(server.address)
        self.api.channel.close()
        self.api.channel = grpc.insecure_channel(server.address)
        self.api.stub = EvaluationServiceStub(self.api.channel)
        self.largest = self.prepared(_many_results(), call=largest_submission())
        self.wide = [self.prepared(wide(5000)), self.prepared(wide(5000))]

    def prepared(self, document: object, samples: Mapping[str, str] | None = None, call: object = None) -> pb.JobInfo:
        """Run a job that leaves this."""
        prepare(self.site, document, dict(samples or {}))
        job = self.api.SubmitJob(call) if call else self.api.submit("prepared")
        return self.api.wait_for(job.job_id, *TERMINAL)

    def with_samples(self, rows: Iterable[Mapping[str, object]]) -> pb.JobInfo:
        """Run a job that leaves these samples of its task `t`."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return self.prepared({"results": {"t": {"acc,none": 0.5}}}, {"t": text})

    def output_of(self, job: pb.JobInfo) -> Path:
        return Path(job.attempts[-1].output_dir)

    def submit_suite(self, name: str = "s00") -> Any:
        request = pb.EvaluateRequest(model="slow", num_gpus=0)
        request.model_args["text"] = "m" * 500_000
        return self.api.SubmitSuite(suite=name, request=request, labels={"k": "😀" * 255})


def _many_results() -> dict[str, Any]:
    tasks = [f"{number:04}" + "ä" * 100 for number in range(3000)]
    row = {"acc,none": 0.5, "acc_stderr,none": 0.1, "m0": 0, "m1": 1, "odd": "o" * 300}
    return {
        "results": dict.fromkeys(tasks, row),
        "task_hashes": dict.fromkeys(tasks, "h" * 200),
        **{f"more {number}": "y" * 400 for number in range(30)},
    }


def _config_of_suites() -> str:
    text = "x" * SUITE_TEXT_BYTES
    return "".join(
        f'[[suites.s{number:02}.entries]]\nharness = "toy"\ntasks = ["t"]\ngen_kwargs = {{ text = "{text}" }}\n'
        for number in range(SUITES)
    )


def _harness_with_long_names(site: Site) -> str:
    python = site.folder / "env" / "bin" / "python"
    (site.folder / "env" / "lib" / "python3.11" / "site-packages" / "lm_eval-0.4.1.dist-info").mkdir(parents=True)
    python.parent.mkdir()
    names = [f"{number:04}" + "😀" * 1020 for number in range(1100)]
    (site.folder / "names.json").write_text(json.dumps({"tasks": names, "models": names}))
    python.write_text(f"#!/bin/sh\ncat {site.folder / 'names.json'}\n")
    python.chmod(0o755)
    return f'[harnesses.lm-eval]\npython = "{python}"\n'


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    site = Site(tmp_path_factory.mktemp("site"))
    with site.config.open("a") as config:
        config.write(_harness_with_long_names(site) + _config_of_suites())
    server = ServerHere(site.settings())
    world = World(site, server)
    yield world
    world.api.close()
    server.start_no_more()

    def ended() -> bool:
        site.kill_runs()
        return server.idle

    eventually(ended, "for the runs to end")
    server.stop()


# What each method has to say. The functions take the world, and return messages.


def snapshots(world: World) -> Iterator[Message]:
    for event in (stream := world.api.WatchJobs()):
        yield event
        if event.type == BOOKMARK:
            stream.cancel()
            return


def cancelled(world: World) -> Message:
    call = largest_submission()
    call.request.model, call.request_id = "slow", "another"
    return world.api.CancelJob(job_id=world.api.SubmitJob(call).job_id, reason="😀" * 1000)


def updated(world: World) -> Message:
    labels = {**world.largest.labels, "00" + "k" * 61: "ä" * 255}
    return world.api.UpdateJob(job_id=world.largest.job_id, labels=labels, update_mask={"paths": ["labels"]})


def log(world: World) -> Iterator[Message]:
    job = world.wide[0]
    (world.data_dir / "jobs" / job.job_id / "attempt-1" / "log").write_bytes("ä".encode() * 3_000_000)
    yield from world.api.ReadLog(job_id=job.job_id)


def long_names(world: World) -> Iterator[Message]:
    job = world.wide[1]
    folder = world.output_of(job)
    while len(str(folder)) < 4095 - 256:
        folder /= "d" * 250
    folder.mkdir(parents=True)
    for number in range(1200):
        (folder / f"{number:06}").touch()
    yield from pages(world.api.ListArtifacts, job_id=job.job_id)


def large_file(world: World) -> Iterator[Message]:
    job = world.wide[0]
    (world.output_of(job) / "large").write_bytes(bytes(5 * MIB))
    yield from world.api.ReadArtifact(job_id=job.job_id, name="large")


def rows_with_many_fields(count: int, **values: object) -> list[dict[str, object]]:
    """Rows of too many values, of which each has more fields than can be named."""
    return [
        {"doc_id": number, "acc": number % 2, **values, **{f"{field:03}" + "😀" * 61: [0] * 40 for field in range(110)}}
        for number in range(count)
    ]


def samples(world: World) -> Iterator[Message]:
    few = rows_with_many_fields(160)
    large = [{"doc_id": number, "text": "x" * number + "ä" * 1_200_000} for number in range(2)]
    for rows in (few, large):
        job = world.with_samples(rows)
        found = list(pages(world.api.ListSamples, job_id=job.job_id, page_size=1000))
        assert [row["doc_id"] for page in found for row in page.samples] == list(range(len(rows)))
        assert len(found) > 1
        yield from found


def flips(world: World) -> Iterator[Message]:
    jobs = [world.with_samples([{"doc_id": LONG_ID, "acc": value}]) for value in (0, 1)]
    call = ListFlipsRequest(baseline_job_id=jobs[0].job_id, candidate_job_id=jobs[1].job_id)
    page = world.api.ListFlips(call)
    assert (len(page.flips), set(page.truncated_fields)) == (1, {f"flips[0].{name}" for name in CUT_OF_LONG_ID})
    yield page
    jobs = [world.with_samples(rows_with_many_fields(100, acc=value)) for value in (0, 1)]
    budget = ReadBudget(UNLIMITED)
    found = find_flips(ListFlipsRequest(), jobs, {}, world.data_dir, budget)
    page = read_flips(found.part(range(100)), 1000, jobs, {}, world.data_dir, budget)  # in a process, rows had to be larger
    assert 0 < len(page.flips) < 100
    assert len(page.truncated_fields) > 100 * len(page.flips)
    yield page


def media(world: World) -> Iterator[Message]:
    job = world.with_samples([{"doc_id": 0, "media": {"😀" * 1_000_000: "data:image/png;base64,"}, "image": ["a/b"] * 50}])
    yield from world.api.ReadSampleMedia(job_id=job.job_id, sample_id="0")


def compared(world: World) -> Message:
    job, other = world.wide
    return world.api.CompareJobs(baseline_job_id=job.job_id, candidate_job_ids=[other.job_id])


def trends(world: World) -> Iterator[Message]:
    many = {"results": {f"{number:03}" + "😀" * 250: {"acc,none": 0.5} for number in range(100)}}
    prepare(world.site, many)
    world.api.run("prepared", labels={"run": "😀" * 255, "step": "1"})
    only = pb.JobFilter(label_selector="run,step")
    yield from pages(world.api.GetHistory, filter=only, trends={"run_label": "run"})
    yield from pages(world.api.GetHistory, filter=pb.JobFilter(job_id_prefix=world.largest.job_id))


def suite_run(world: World) -> Iterator[Message]:
    run = world.submit_suite()
    yield run
    yield world.api.GetSuiteRun(suite_run_id=run.suite_run_id, view=SUITE_RUN_VIEW_DECISION)
    yield world.api.CancelSuiteRun(suite_run_id=run.suite_run_id)
    yield from world.api.WatchSuiteRun(suite_run_id=run.suite_run_id)


def suite_runs(world: World) -> Iterator[Message]:
    for number in range(4):
        world.api.CancelSuiteRun(suite_run_id=world.submit_suite(f"s{number:02}").suite_run_id)
    yield from pages(world.api.ListSuiteRuns, page_size=1000)


class Case(NamedTuple):
    answers: Callable[[World], Message | Iterable[Message]]
    at_least_bytes: int
    """How large the largest of them is at least: so large that a sum of parts was near its bound."""


def named(name: str) -> Callable[[World], Iterable[Message]]:
    return lambda world: pages(getattr(world.api, name), harness="lm-eval", page_size=1000)


CASES: Final[Mapping[str, Case]] = {
    "SubmitJob": Case(lambda world: world.api.SubmitJob(largest_submission(validate_only=True)), MIB),
    "GetJob": Case(lambda world: world.api.get(world.largest.job_id), 2 * MIB),
    "WatchJob": Case(lambda world: world.api.watch(world.largest.job_id), 2 * MIB),
    "WatchJobs": Case(snapshots, 2 * MIB),
    "ListJobs": Case(lambda world: pages(world.api.ListJobs, page_size=1000), 2 * MIB),
    "CancelJob": Case(cancelled, MIB),
    "UpdateJob": Case(updated, 2 * MIB),
    "GetQueue": Case(lambda world: world.api.GetQueue(), 0),  # and see below
    "ListEngines": Case(lambda world: world.api.ListEngines(), 0),  # and see below
    "ReadLog": Case(log, 256 * 1024),
    "ListArtifacts": Case(long_names, 2 * MIB),
    "ReadArtifact": Case(large_file, MIB),
    "ListSamples": Case(samples, 2 * MIB),
    "ReadSampleMedia": Case(media, 4096),
    "ListMetrics": Case(lambda world: pages(world.api.ListMetrics, job_id=world.largest.job_id, page_size=10_000), MIB),
    "GetHistory": Case(trends, MIB),
    "CompareJobs": Case(compared, MIB),
    "PlanComparison": Case(lambda world: world.api.PlanComparison(difference=0.1, baseline_job_id=world.wide[0].job_id), MIB),
    "ListFlips": Case(flips, MIB),
    "ListSuites": Case(lambda world: pages(world.api.ListSuites, page_size=1000), 2 * MIB),
    "SubmitSuite": Case(lambda world: world.submit_suite(), SUITE_TEXT_BYTES + 500_000),
    "ListSuiteRuns": Case(suite_runs, 2 * MIB),
    **dict.fromkeys(("GetSuiteRun", "WatchSuiteRun", "CancelSuiteRun"), Case(suite_run, SUITE_TEXT_BYTES + 500_000)),
    "ListTasks": Case(named("ListTasks"), 2 * MIB),
    "ListModels": Case(named("ListModels"), 2 * MIB),
    "ListHarnesses": Case(lambda world: world.api.ListHarnesses(), 0),
    "GetCaller": Case(lambda world: world.api.GetCaller(), 0),
    "GetServerInfo": Case(lambda world: world.api.GetServerInfo(), 0),
}


@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_the_largest_answers_fit(world: World, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    assert method in CASES, "say here how large its answers get, and how they are held below 4 MiB"
    for module in (sample_pages, flips_module):
        monkeypatch.setattr(module, "MAX_ROW_VALUES", 1000)  # else such rows take megabytes each
    found = CASES[method].answers(world)
    sizes = [message.ByteSize() for message in ([found] if isinstance(found, Message) else found)]
    assert CASES[method].at_least_bytes <= max(sizes) <= MAX_ANSWER_BYTES


def test_many_engines_are_listed_without_their_arguments_and_very_many_in_part() -> None:
    settings: Any = SimpleNamespace(engines={}, endpoints={})
    engine = Engine(engine_id="e" * 40, error="x" * 2048, warnings=["w" * 400] * 6)
    engine.served_model.model = "m" * 1024
    engine.served_model.args["text"] = "a" * 60_000
    few = listing([engine] * 40, settings, {}, None)
    assert 2 * MIB < few.ByteSize() < MAX_ANSWER_BYTES
    assert few.engines[-1] == engine
    many = listing([engine] * 400, settings, {}, None)
    assert (len(many.engines), many.ByteSize() < MAX_ANSWER_BYTES) == (400, True)
    assert not any(each.served_model.args.fields for each in many.engines)
    assert 400 < len(listing([engine] * 4000, settings, {}, None).engines) < 4000


def test_the_largest_queue_fits() -> None:
    """With as much as it names at most, on as many GPUs as a site of a thousand machines has."""
    job_id = "0" * 36
    answer = GetQueueResponse(
        queued_job_ids=[job_id] * queue_listing.MAX_QUEUED_IDS,
        running_job_ids=[job_id] * queue_listing.MAX_RUNNING_IDS,
        gpus=[Gpu(id="G" * 60, name="N" * 40, job_id=job_id, node="n" * 60, engine_id=job_id)] * 8000,
        owners=[OwnerShare(owner="o" * 63, weight=1.5, used_gpu_seconds=1e9, kept_bytes=2**62)] * queue_listing.MAX_OWNERS,
        nodes=[NodeState(name="n" * 60, executor="e" * 60, running_count=9999)] * 1000,
    )
    assert answer.ByteSize() < MAX_ANSWER_BYTES


def test_arguments_of_a_served_model_are_bounded(world: World) -> None:
    call = pb.SubmitJobRequest(request=pb.EvaluateRequest(harness="toy", tasks=["t"], num_gpus=0), validate_only=True)
    call.request.served_model.engine = "none"
    call.request.served_model.args["text"] = "x" * 65_536
    with pytest.raises(grpc.RpcError, match="at most 65536 are allowed") as error:
        world.api.SubmitJob(call)
    assert "request.served_model.args" in fields_of(error.value)


def test_too_many_metrics_for_an_answer_are_an_error_that_can_be_read(world: World) -> None:
    job = world.prepared(wide(12_000))
    for call in (
        lambda: world.api.CompareJobs(baseline_job_id=job.job_id, candidate_job_ids=[world.wide[0].job_id]),
        lambda: world.api.PlanComparison(difference=0.1, baseline_job_id=job.job_id),
    ):
        with pytest.raises(grpc.RpcError) as error:
            call()
        assert reason_of(error.value) == "INVALID_REQUEST"
        assert fields_of(error.value) == ["metrics"]
