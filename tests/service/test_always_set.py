"""Numbers that the schema promises to set are set in every answer, also where they are 0.

An optional number says in its comment when it is absent; one that does not is always set.
"""

import json
import re
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_site import add_engine, end_engines
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from serving import COMPLETED, RUNNING, Api, Site, submission

from evalrpc.v1.history_pb2 import TrendOptions
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobFilter, ServedModel
from evalrpc.v1.suites_pb2 import SUITE_RUN_VIEW_DECISION

PROTOS = Path(__file__).parents[2] / "protos" / "evalrpc" / "v1"
MESSAGE = re.compile(r"^message (\w+) \{")
OPTIONAL = re.compile(r"^  optional (?:double|int32|int64) (\w+) = ")
FALLING = (0.60, 0.61, 0.59, 0.60, 0.62, 0.60, 0.61, 0.60, 0.59, 0.61, 0.45, 0.44, 0.46)
REQUESTS = re.compile(r"Request$|^EvaluateRequest$|^MetricThreshold$")


def always_set() -> set[tuple[str, str]]:
    """Return the optional numbers of the schema whose comments do not say when they are absent, by message and name."""
    found = set()
    for path in PROTOS.glob("*.proto"):
        message, comment = "", ""
        for line in path.read_text().splitlines():
            if match := MESSAGE.match(line):
                message = match[1]
            if line.startswith("  //"):
                comment += line
                continue
            if (match := OPTIONAL.match(line)) and "Absent" not in comment and not REQUESTS.search(message):
                found.add((message, match[1]))
            comment = ""
    return found


def messages_in(message: Message) -> Iterator[Message]:
    """Yield a message and all messages in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None or not field.message_type.full_name.startswith("evalrpc."):
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].type == FieldDescriptor.TYPE_MESSAGE:
                for inner in value.values():
                    yield from messages_in(inner)
        else:
            for inner in value if field.is_repeated else [value]:
                yield from messages_in(inner)


IMAGE = f"data:image/png;base64,{b64encode(b'PNG').decode()}"


def job_with_samples(api: Api, folder: Path, values: tuple[int, int]) -> str:
    """Run a job of two samples with these values."""
    (folder / "20260101_000000_results.json").write_text(json.dumps({"results": {"t": {"acc,none": 0.5}}}))
    rows = ({"doc_id": n, "acc": value, "resps": "a", "input_media": [IMAGE]} for n, value in enumerate(values))
    (folder / "20260101_000000_samples_t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return api.run("prepared").job_id


def trends_of_a_run_that_falls(api: Api, folder: Path) -> Message:
    """Run a job for each step. Return the trends, with an alarm at step 0."""
    for step, value in enumerate(FALLING, start=-11):
        results = {"results": {"t": {"acc,none": value}}}
        (folder / "20260101_000000_results.json").write_text(json.dumps(results))
        api.run("prepared", labels={"run": "falls", "step": str(step)})
    listing = {"filter": JobFilter(label_selector="run=falls"), "trends": TrendOptions(higher_is_better=True)}
    token = api.GetHistory(**listing).next_page_token
    return api.GetHistory(**listing, page_token=token)


@pytest.fixture
def site(site: Site) -> Iterator[Site]:
    """A site with an engine and a suite."""
    add_engine(site)
    site.config.write_text(f"{site.config.read_text()}[[suites.release.entries]]\nharness = 'toy'\ntasks = ['t']\n")
    yield site
    end_engines(site.folder / "data")


@pytest.fixture
def answers(api: Api, site: Site) -> list[Message]:
    """Answers of every call, in which the numbers are 0 wherever they may be."""
    folder = site.toy_dir / "prepared" / "toy"
    folder.mkdir(parents=True)
    (folder / "20260101_000000_results.json").write_text(json.dumps({"results": {"t": {"acc,none": 0}}}))
    (folder / "empty").touch()
    first_info = api.GetServerInfo()
    first_queue = api.GetQueue()
    validated = api.SubmitJob(submission("prepared", validate_only=True))
    model = site.folder / "model"
    model.mkdir()
    served = ServedModel(engine="stub", model=str(model), num_gpus=0)
    asked = api.SubmitJob(request=EvaluateRequest(harness="asking", tasks=["1"], served_model=served))
    queued = api.SubmitJob(submission("prepared"))
    job_id = queued.job_id
    events = list(api.watch(job_id))
    other = api.run("prepared").job_id
    slow = api.submit("slow")
    running = api.wait_for(slow.job_id, RUNNING)
    queue = api.GetQueue()
    cancelled = api.CancelJob(job_id=slow.job_id)
    first, second = (job_with_samples(api, folder, values) for values in ((0, 1), (1, 0)))
    run = api.SubmitSuite(suite="release", request={"model": "prepared", "num_gpus": 0})
    of_run = list(api.WatchSuiteRun(suite_run_id=run.suite_run_id))
    return [
        *(
            first_info,
            first_queue,
            validated,
            api.wait_for(asked.job_id, COMPLETED),
            api.ListEngines(),
            queued,
            *events,
            running,
            queue,
            cancelled,
            api.get(job_id),
        ),
        *(api.ListJobs(), api.ListMetrics(job_id=job_id), api.GetHistory(), api.ListArtifacts(job_id=job_id)),
        *(api.ListHarnesses(), api.CompareJobs(baseline_job_id=first, candidate_job_ids=[second])),
        api.CompareJobs(baseline_job_id=job_id, candidate_job_ids=[other]),
        api.PlanComparison(difference=0.1, differing_ratio=0.1),
        api.ListFlips(baseline_job_id=first, candidate_job_id=second),
        *(api.ListSuites(), run, *of_run, api.GetSuiteRun(suite_run_id=run.suite_run_id, view=SUITE_RUN_VIEW_DECISION)),
        *api.ReadLog(job_id=api.run("good").job_id),
        *api.ReadArtifact(job_id=job_id, name="toy/empty"),
        *api.ReadSampleMedia(job_id=first, sample_id="0"),
        trends_of_a_run_that_falls(api, folder),
    ]


def test_every_number_that_has_to_be_set_is_set_in_every_answer(answers: list[Message]) -> None:
    wanted = always_set()
    seen: set[tuple[str, str]] = set()
    for answer in answers:
        for message in messages_in(answer):
            for field in message.DESCRIPTOR.fields:
                name = message.DESCRIPTOR.name, field.name
                if name in wanted:
                    seen.add(name)
                    assert message.HasField(field.name), f"{name} is not set in {message}"
    assert seen == wanted, "some messages were in no answer"


def test_the_numbers_that_have_to_be_set_are_those_that_one_expects() -> None:
    assert {
        ("Metric", "value"),
        ("ModelResult", "metric_count"),
        ("JobInfo", "attempt"),
        ("JobInfo", "priority"),
    } <= always_set()
    assert {("StatusCount", "count"), ("Artifact", "size_bytes"), ("MetricComparison", "tolerance")} <= always_set()
    assert ("Metric", "standard_error") not in always_set()


def test_zeros_are_in_the_json_of_answers(api: Api, site: Site) -> None:
    folder = site.toy_dir / "prepared" / "toy"
    folder.mkdir(parents=True)
    (folder / "20260101_000000_results.json").write_text(json.dumps({"results": {"t": {"acc,none": 0}}}))
    job = api.run("prepared")
    assert job.status == COMPLETED
    document: dict[str, Any] = json_format.MessageToDict(job, preserving_proto_field_name=True)
    assert document["results"]["toy"]["metrics"][0]["value"] == 0.0
    assert document["priority"] == 0
