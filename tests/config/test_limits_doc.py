"""Every limit that a caller can meet is in docs/settings.md, and past each of a request the server says which it was."""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

import evalrpc
from evalrpc.config import HarnessSettings
from evalrpc.errors import FieldViolation
from evalrpc.harnesses.command import CommandHarness
from evalrpc.server import secret_use, validation
from evalrpc.server.validation.fields import MAX_SELECTORS
from evalrpc.v1.comparison_pb2 import CompareJobsRequest, PlanComparisonRequest
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobFilter, SubmitJobRequest, UpdateJobRequest, WatchJobRequest
from evalrpc.v1.results_pb2 import MetricSelector
from evalrpc.v1.samples_pb2 import ListSamplesRequest, SampleFilter
from evalrpc.v1.suites_pb2 import SubmitSuiteRequest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from scripts import limits_section  # noqa: E402

PACKAGES: Final = ("analysis", "files", "harnesses", "jobs", "protobuf", "reading", "results", "server")
"""Those whose limits callers can meet. Other packages bound what they keep, send to each other, or show."""

OF_NO_CALLER: Final = {
    **dict.fromkeys(
        ("MIN_CLUSTERS", "MIN_SAMPLES", "MAX_RESAMPLED", "MIN_TREND_POINTS", "MIN_ALARM_POINTS"), "a method's, said in notes"
    ),
    **dict.fromkeys(("MAX_NAMED", "MAX_OFFERED", "MAX_MESSAGE_CHARACTERS"), "how much a message names"),
    **dict.fromkeys(("MAX_COUNT", "MAX_SECONDS", "MAX_DURATION_NS"), "what a field can hold"),
    **dict.fromkeys(("MAX_REFUSALS", "MAX_UNWRITTEN", "MAX_KNOWN", "MAX_SOURCES"), "what the server remembers"),
    **dict.fromkeys(("MIN_SECONDS_BETWEEN_FETCHES", "MAX_AGE_SECONDS"), "what is asked of an identity provider"),
    "IN_PLACE_LIMITS": "past it another process reads",
    "MAX_BACKOFF_SECONDS": "of a retry",
    "MAX_SUITE_BYTES": "of the operator's suites: the server does not start",
    "MAX_TASK_WARNINGS": "a share of the warnings of a job",
    "MAX_VALUE_LENGTH": "MAX_NAME_LENGTH by another name",
    "MIN_FREE_BYTES": "of the disk: health and doctor say so",
}


def limits_in_code() -> Iterator[str]:
    """Yield the public constants that are limits, as `module.NAME`."""
    for package in PACKAGES:
        for path in sorted((Path(evalrpc.__file__).parent / package).rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                targets = (
                    [node.target] if isinstance(node, ast.AnnAssign) else node.targets if isinstance(node, ast.Assign) else []
                )
                names = [target.id for target in targets if isinstance(target, ast.Name)]
                yield from (f"{path.stem}.{name}" for name in names if re.match(r"(MAX|MIN)_|([A-Z]\w*_)?LIMITS$", name))


def limits_in_docs() -> set[str]:
    """Return the names that the section of the page is made of."""
    path = ROOT / "scripts" / "limits_section.py"
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    used = {(node.value.id, node.attr) for node in nodes if isinstance(node.value, ast.Name)}
    modules = ((getattr(limits_section, name, None), attribute) for name, attribute in used)
    named = {f"{each.__name__.rpartition('.')[2]}.{attribute}" for each, attribute in modules if isinstance(each, ModuleType)}
    return named | {"opening.MAX_NAME_BYTES"}


def test_every_limit_of_a_caller_is_on_the_page() -> None:
    found = set(limits_in_code())
    assert len(found) > 80
    missing = {name for name in found - limits_in_docs() if name.rpartition(".")[2] not in OF_NO_CALLER}
    assert not missing, "put them into scripts/limits_section.py, or say above why no caller meets them"


HARNESSES: Final = {"nightly": CommandHarness(HarnessSettings("nightly", "command", command=("true",)))}
UUID: Final = "0b54e7a6-3a51-4f2c-9d5e-6f6c4f1a2b3c"


def submission(**fields: Any) -> Iterator[FieldViolation]:
    """Yield what is wrong with a good submission that has these fields; those of `request` begin with `of_`."""
    own = {name: value for name, value in fields.items() if not name.startswith("of_")}
    of_request = {name.removeprefix("of_"): value for name, value in fields.items() if name.startswith("of_")}
    request = EvaluateRequest(**{"harness": "nightly", "model": "m", "tasks": ["t"], "num_gpus": 0, **of_request})
    yield from validation.submission(SubmitJobRequest(request=request, **own), HARNESSES, (1,), Path("/srv"))
    yield from secret_use.violations(request, (), {}, "ann")


def filtered(**fields: Any) -> Iterator[FieldViolation]:
    return validation.job_filter(JobFilter(**fields))


def compared(**fields: Any) -> Iterator[FieldViolation]:
    return validation.comparison(CompareJobsRequest(**{"baseline_job_id": UUID, "candidate_job_ids": [UUID[::-1]], **fields}))


def planned(**fields: Any) -> Iterator[FieldViolation]:
    return validation.plan(PlanComparisonRequest(**{"difference": 0.1, "differing_ratio": 0.2, **fields}))


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


SELECTORS: Final[list[Message]] = [MetricSelector(task="t")] * (MAX_SELECTORS + 1)

PAST: Final[dict[str, Callable[[], Iterator[FieldViolation]]]] = {
    "`model`": lambda: submission(of_model="m" * 1025),
    "number of `tasks`": lambda: submission(of_tasks=[f"t{n}" for n in range(1001)]),
    "all names of `tasks` together": lambda: submission(of_tasks=[f"{n:0250}" for n in range(500)]),
    "name of a task, value of a label, names in a selector": lambda: submission(labels={"a": "x" * 256}),
    "`model_args`, `gen_kwargs`, and `task_args`": lambda: submission(of_task_args={"a": "x" * 2**19}),
    "values in all of these together": lambda: submission(
        of_model_args={"a": [None] * 60_000}, of_task_args={"a": [None] * 60_000}
    ),
    "depth of any of these": lambda: submission(of_model_args=nested(17)),
    "`output_dir`": lambda: submission(of_output_dir="x/" * 2049),
    "number of `labels`": lambda: submission(labels={f"l{n}": "" for n in range(65)}),
    "key of a label": lambda: submission(labels={"l" * 64: ""}),
    "`request_id`": lambda: submission(request_id="r" * 129),
    "`supersede_key`": lambda: submission(supersede_key="s" * 256),
    "number of `secrets`": lambda: submission(of_secrets=[f"S{n}" for n in range(65)]),
    "`max_bad_answer_ratio`": lambda: submission(of_max_bad_answer_ratio=1.1),
    "`max_attempts`": lambda: submission(max_attempts=11),
    "`priority`": lambda: submission(priority=-1001),
    "`timeout`": lambda: submission(timeout=Duration(seconds=366 * 86400 + 1)),
    "`reason` of a cancel": lambda: validation.cancel_reason("r" * 1001),
    "models, tasks, harnesses or owners in a filter": lambda: filtered(models=["m"] * 1001),
    "statuses in a filter": lambda: filtered(statuses=[1] * 65),
    "ids of samples in a filter": lambda: validation.sample_listing(
        ListSamplesRequest(filter=SampleFilter(sample_ids=["s"] * 1001))
    ),
    "text, metric or id in a filter of samples": lambda: validation.sample_listing(
        ListSamplesRequest(filter=SampleFilter(text="t" * 1025))
    ),
    "suite runs in a filter": lambda: filtered(suite_run_ids=[UUID] * 1001),
    "`job_id_prefix`": lambda: filtered(job_id_prefix="0b5"),
    "`label_selector`": lambda: filtered(label_selector="a" * 4097),
    "requirements in it": lambda: filtered(label_selector=",".join(["a"] * 101)),
    "candidates of a comparison": lambda: compared(candidate_job_ids=[UUID] * 17),
    "selectors of metrics, and thresholds": lambda: compared(metrics=SELECTORS),
    "`alpha`": lambda: compared(alpha=0.6),
    "`cluster_by`": lambda: compared(cluster_by="c" * 256),
    "`difference` of a plan": lambda: planned(difference=1e13),
    "`power` of a plan": lambda: planned(power=0.4),
    "`update_mask`": lambda: validation.update(UpdateJobRequest(job_id=UUID, update_mask=FieldMask(paths=["labels"] * 101))),
    "a SubmitSuiteRequest": lambda: validation.suite_submission(SubmitSuiteRequest(suite="s" * 2**20)),
    "`heartbeat_interval`": lambda: validation.watch(WatchJobRequest(heartbeat_interval=Duration(nanos=10**7))),
}
"""What is past each limit of a request, by its name on the page."""

TESTED_ELSEWHERE: Final = {
    "`model` of a served model": "tests/server/test_served_use.py",
    "`args` of a served model": "tests/service/test_every_answer_fits.py",
    "`max_replicas` of a served model": "tests/server/test_served_use.py",
    "`epochs` in `task_args`, of inspect-ai": "tests/harnesses/test_task_args.py",
}


def numbers_in(text: str) -> set[float]:
    """Return the numbers in a text, sizes as bytes and times as they are."""
    units = {"KiB": 1024, "MiB": 1024**2, "ms": 0.001}
    found = re.findall(r"(-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?) ?(KiB|MiB|ms)?", text)
    return {float(number.replace(",", "")) * units.get(unit, 1) for number, unit in found}


@pytest.mark.parametrize("row", list(limits_section.requests()), ids=lambda row: row[0])
def test_past_each_limit_of_a_request_its_field_and_the_limit_are_named(row: tuple[str, str, str]) -> None:
    name, value, past = row
    if name in TESTED_ELSEWHERE:
        assert (ROOT / TESTED_ELSEWHERE[name]).exists()
        return
    violations = list(PAST[name]())
    fields = re.findall(r"`([a-z_.]+)`", past.rpartition("field")[2]) or ["labels"]
    met = [each for each in violations if any(re.split(r"[.\[]", field)[-1] in each.field for field in fields)]
    assert met, f"{violations} name none of {fields}"
    assert any(numbers_in(value) & numbers_in(each.description) for each in met), f"{met} do not name {value}"
