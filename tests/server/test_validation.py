"""Validation finds every bad field of a request."""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.config import HarnessSettings
from evalrpc.errors import FieldViolation, InvalidRequestError
from evalrpc.harnesses.command import CommandHarness
from evalrpc.reading import page_tokens
from evalrpc.server import validation
from evalrpc.server.validation import evaluations
from evalrpc.v1.files_pb2 import ReadLogRequest
from evalrpc.v1.jobs_pb2 import (
    EvaluateRequest,
    JobEvent,
    JobFilter,
    JobInfo,
    ListJobsResponse,
    SubmitJobRequest,
    WatchJobRequest,
    WatchJobsRequest,
)

HARNESS = CommandHarness(HarnessSettings("nightly", "command", command=("true",)))
HARNESSES = {"nightly": HARNESS}
UUID = "0b54e7a6-3a51-4f2c-9d5e-6f6c4f1a2b3c"


def call_of(call: dict[str, Any] | None = None, **request: Any) -> SubmitJobRequest:
    fields = {"harness": "nightly", "model": "m", "tasks": ["t"], "num_gpus": 0} | request
    model_args, gen_kwargs = fields.pop("model_args", None), fields.pop("gen_kwargs", None)
    message = SubmitJobRequest(request=EvaluateRequest(**fields), **(call or {}))
    for struct, values in ((message.request.model_args, model_args), (message.request.gen_kwargs, gen_kwargs)):
        if values:
            struct.update(values)
    return message


def violations(call: SubmitJobRequest, gpus: int = 2, output_root: Path | None = None) -> list[FieldViolation]:
    return list(validation.submission(call, HARNESSES, (gpus,), output_root))


def fields(call: SubmitJobRequest, **options: Any) -> list[str]:
    return [violation.field for violation in violations(call, **options)]


# Valid requests.


@pytest.mark.parametrize(
    "call",
    [
        call_of(),
        call_of(model="acme/model-7b", tasks=["mme", "mmmu_val", "mm star"]),
        call_of(model="m" * 1024, tasks=["t" * 255]),
        call_of(tasks=[f"t{number}" for number in range(1000)]),
        call_of(num_fewshot=0),
        call_of(num_fewshot=5),
        call_of(batch_size="1"),
        call_of(batch_size="auto"),
        call_of(batch_size="auto:4"),
        call_of(device="cuda"),
        call_of(device="cuda:0"),
        call_of(device="cpu"),
        call_of(device="mps"),
        call_of(limit=0.25),
        call_of(limit=1),
        call_of(limit=100),
        call_of(log_samples=False, predict_only=True),
        call_of(num_gpus=2),
        call_of(model_args={"pretrained": "x", "n": 1, "b": True, "none": None, "list": [1, "a", {"k": 0.5}], "s": {"a": {}}}),
        call_of(gen_kwargs={"until": ["\n\n"], "temperature": 0, "prompt": "two\nlines\tand a tab"}),
        call_of({"request_id": "!"}),
        call_of({"request_id": "~" * 128}),
        call_of({"priority": 1000}),
        call_of({"priority": -1000}),
        call_of({"labels": {"a": "", "A-z0_9./-": "x" * 255}}),
        call_of({"labels": {f"l{number}": "v" for number in range(64)}}),
        call_of({"timeout": Duration(seconds=1)}),
        call_of({"timeout": Duration(nanos=500_000_000)}),
        call_of({"max_attempts": 10}),
        call_of({"supersede_key": "k" * 255}),
    ],
)
def test_what_the_contract_allows_is_taken(call: SubmitJobRequest) -> None:
    assert violations(call) == []


# Invalid fields, one by one.


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (SubmitJobRequest(), ["request"]),
        (call_of(harness="other"), ["request.harness"]),
        (call_of(harness=""), ["request.harness"]),
        (call_of(harness="x" * 100_000), ["request.harness"]),
        (call_of(model=""), ["request.model"]),
        (call_of(model="  "), ["request.model"]),
        (call_of(model="--config"), ["request.model"]),
        (call_of(model="m" * 1025), ["request.model"]),
        (call_of(model="a\nb"), ["request.model"]),
        (call_of(model="a\0b"), ["request.model"]),
        (call_of(tasks=[]), ["request.tasks"]),
        (call_of(tasks=["a", ""]), ["request.tasks[1]"]),
        (call_of(tasks=["a", "-b"]), ["request.tasks[1]"]),
        (call_of(tasks=["a", "b", "a"]), ["request.tasks[2]"]),
        (call_of(tasks=["a/b"]), ["request.tasks[0]"]),
        (call_of(tasks=["..\\b"]), ["request.tasks[0]"]),
        (call_of(tasks=["a.YAML"]), ["request.tasks[0]"]),
        (call_of(tasks=["a,b"]), ["request.tasks[0]"]),
        (call_of(tasks=["t" * 256]), ["request.tasks[0]"]),
        (call_of(tasks=["a\tb"]), ["request.tasks[0]"]),
        (call_of(tasks=[f"t{number}" for number in range(1001)]), ["request.tasks"]),
        (call_of(num_fewshot=-1), ["request.num_fewshot"]),
        (call_of(batch_size="0"), ["request.batch_size"]),
        (call_of(batch_size="-1"), ["request.batch_size"]),
        (call_of(batch_size="many"), ["request.batch_size"]),
        (call_of(batch_size="1.5"), ["request.batch_size"]),
        (call_of(batch_size="auto:0"), ["request.batch_size"]),
        (call_of(batch_size="auto\n"), ["request.batch_size"]),
        (call_of(batch_size="\u0663"), ["request.batch_size"]),
        (call_of(device="cuda;0"), ["request.device"]),
        (call_of(device="cuda:0\n"), ["request.device"]),
        (call_of(device="--x"), ["request.device"]),
        (call_of(limit=0), ["request.limit"]),
        (call_of(limit=-1), ["request.limit"]),
        (call_of(limit=math.nan), ["request.limit"]),
        (call_of(limit=math.inf), ["request.limit"]),
        (call_of(limit=1.5), ["request.limit"]),
        (call_of(num_gpus=-1), ["request.num_gpus"]),
        (call_of(num_gpus=3), ["request.num_gpus"]),
        (call_of(num_gpus=2**31 - 1), ["request.num_gpus"]),
        (call_of(output_dir="out"), ["request.output_dir"]),
        (call_of(model_args={"a": "x\0y"}), ["request.model_args.a"]),
        (call_of(gen_kwargs={"a": ["b", "\0"]}), ["request.gen_kwargs.a[1]"]),
        (call_of(gen_kwargs={"a": {"\x1b": 1}}), [r"request.gen_kwargs.a.\x1b"]),
        (call_of(model_args={"a": "x" * 2**20}), ["request.model_args"]),
        (call_of(gen_kwargs={"a": "x" * 5 * 2**20}), ["request.gen_kwargs"]),
        (call_of({"request_id": "a b"}), ["request_id"]),
        (call_of({"request_id": "é"}), ["request_id"]),
        (call_of({"request_id": "a\n"}), ["request_id"]),
        (call_of({"request_id": "x" * 129}), ["request_id"]),
        (call_of({"priority": 1001}), ["priority"]),
        (call_of({"priority": -1001}), ["priority"]),
        (call_of({"priority": -(2**31)}), ["priority"]),
        (call_of({"labels": {"": "x"}}), ["labels"]),
        (call_of({"labels": {"a b": "x"}}), ["labels"]),
        (call_of({"labels": {"a" * 64: "x"}}), ["labels"]),
        (call_of({"labels": {"a": "x" * 256}}), ["labels['a']"]),
        (call_of({"labels": {"a": "x\ny"}}), ["labels['a']"]),
        (call_of({"labels": {f"l{number}": "v" for number in range(65)}}), ["labels"]),
        (call_of({"timeout": Duration()}), ["timeout"]),
        (call_of({"timeout": Duration(seconds=-1)}), ["timeout"]),
        (call_of({"timeout": Duration(seconds=2**62)}), ["timeout"]),
        (call_of({"max_attempts": -1}), ["max_attempts"]),
        (call_of({"max_attempts": 11}), ["max_attempts"]),
        (call_of({"supersede_key": "k" * 256}), ["supersede_key"]),
        (call_of({"supersede_key": "a\0"}), ["supersede_key"]),
    ],
)
def test_what_the_contract_refuses_is_named_by_its_path(call: SubmitJobRequest, expected: list[str]) -> None:
    assert fields(call) == expected


UNPRINTABLE = {
    "\x1b": r"\x1b",
    "\n": r"\x0a",
    "\x7f": r"\x7f",
    "\x9b": r"\x9b",
    "\u202e": r"\u202e",
    "\u2066": r"\u2066",
    "\u200b": r"\u200b",
    "\u2028": r"\u2028",
    "\ufeff": r"\ufeff",
    "\U000e0041": r"\U000e0041",
}


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("request.model", lambda text: call_of(model=text)),
        ("request.tasks[1]", lambda text: call_of(tasks=["t", text])),
        ("labels['a']", lambda text: call_of({"labels": {"a": text}})),
        ("supersede_key", lambda text: call_of({"supersede_key": text})),
    ],
    ids=["model", "tasks", "labels", "supersede_key"],
)
@pytest.mark.parametrize(("character", "escape"), UNPRINTABLE.items(), ids=UNPRINTABLE.values())
def test_a_character_that_acts_on_a_display_or_hides_is_named_with_its_field(
    field: str, call: Callable[[str], SubmitJobRequest], character: str, escape: str
) -> None:
    found = violations(call(f"a{character}b"))

    assert found == [(field, f"must have no control or invisible characters, and has {escape}")]


def test_the_output_folder_and_the_reason_of_a_cancel_have_none_of_them_either(tmp_path: Path) -> None:
    call = call_of(output_dir="a\u202eb")
    (found,) = violations(call, output_root=tmp_path)
    assert found == ("request.output_dir", r"must have no control or invisible characters, and has \u202e")
    assert list(validation.cancel_reason("a\x1b")) == [
        ("reason", r"must have no control or invisible characters, and has \x1b")
    ]


def test_in_the_values_of_arguments_they_are_data() -> None:
    text = "".join(UNPRINTABLE)
    assert violations(call_of(gen_kwargs={"until": [text]}, model_args={"prompt": text})) == []


@pytest.mark.parametrize("text", ["中文", "🙂", "❤️", "e\u0301", "שלום"])
def test_what_people_write_in_labels_is_taken(text: str) -> None:
    assert violations(call_of({"labels": {"a": text}, "supersede_key": text}, tasks=[text])) == []


def test_the_bounds_of_durations_are_in_words() -> None:
    ((_, timeout),) = violations(call_of({"timeout": Duration()}))
    assert timeout == "must be from 1 ms to 366 days"
    ((_, heartbeat),) = validation.watch(WatchJobRequest(heartbeat_interval=Duration(nanos=1)))
    assert heartbeat == "must be from 100 ms to 366 days"


@pytest.mark.parametrize(
    ("request_fields", "has", "text"),
    [
        ({"num_gpus": 1}, (0,), "asks for 1 GPU, and this server has none: leave it out"),
        ({"num_gpus": 3}, (2,), "asks for 3 GPUs, and this server has 2"),
    ],
)
def test_too_many_gpus_are_counted_in_words(request_fields: dict[str, int], has: tuple[int, ...], text: str) -> None:
    call = SubmitJobRequest(request=EvaluateRequest(harness="lmms-eval", model="m", tasks=["t"], **request_fields))
    assert list(validation.submission(call, {"lmms-eval": HARNESS}, has, None)) == [("request.num_gpus", text)]


NOT_FINITE = [
    (call_of(model_args={"a": math.nan}), "request.model_args.a"),
    (call_of(model_args={"a": {"b": [0, math.inf]}}), "request.model_args.a.b[1]"),
    (call_of(gen_kwargs={"a": [[{"x": -math.inf}]]}), "request.gen_kwargs.a[0][0].x"),
]


@pytest.mark.parametrize(("call", "expected"), NOT_FINITE)
def test_a_number_that_is_not_finite_is_named_by_its_path_in_the_arguments(call: SubmitJobRequest, expected: str) -> None:
    assert expected in fields(call)


@pytest.mark.parametrize(("call", "expected"), NOT_FINITE)
def test_a_number_that_is_not_finite_is_named_once(call: SubmitJobRequest, expected: str) -> None:
    assert fields(call) == [expected]


@pytest.mark.parametrize(
    "timeout", [Duration(seconds=1, nanos=2_000_000_000), Duration(seconds=5, nanos=-1), Duration(seconds=5, nanos=-(2**31))]
)
def test_a_malformed_duration_is_refused(timeout: Duration) -> None:
    assert fields(call_of({"timeout": timeout})) == ["timeout"]
    assert list(validation.watch(WatchJobRequest(heartbeat_interval=timeout)))


class TakesNoTaskArgs:
    """A harness as of before there were any, but for what the validation does not ask it."""

    name = "nightly"

    def violations(self, request: EvaluateRequest) -> Iterator[FieldViolation]:
        yield from (FieldViolation("task_args.a", "is none of mine") for _ in request.task_args.fields)


def test_a_harness_that_knows_no_arguments_of_tasks_gets_none() -> None:
    call = call_of()
    call.request.task_args.update({"a": 1})
    harnesses: Any = {"nightly": TakesNoTaskArgs()}
    found = list(validation.submission(call, harnesses, (), None))
    assert found == [("request.task_args", "harness nightly takes none: leave it out")]


def test_all_bad_fields_are_named_at_once() -> None:
    call = call_of(
        {
            "request_id": " ",
            "priority": 5000,
            "labels": {"!": ""},
            "timeout": Duration(),
            "max_attempts": 99,
            "supersede_key": "\n",
        },
        harness="nope",
        model="",
        tasks=["", "a/b"],
        num_fewshot=-1,
        batch_size="x",
        device="!",
        limit=0,
        num_gpus=99,
        output_dir="x",
        model_args={"a": math.nan},
        gen_kwargs={"b": math.inf},
    )
    assert set(fields(call)) == {
        "request.harness",
        "request.model",
        "request.tasks[0]",
        "request.tasks[1]",
        "request.num_fewshot",
        "request.batch_size",
        "request.device",
        "request.limit",
        "request.num_gpus",
        "request.output_dir",
        "request.model_args.a",
        "request.gen_kwargs.b",
        "request_id",
        "priority",
        "labels",
        "timeout",
        "max_attempts",
        "supersede_key",
    }


def test_no_field_is_named_twice_for_one_fault() -> None:
    call = call_of(model="-m", tasks=["a\0"], model_args={"a": math.nan})
    named = fields(call)
    assert sorted(named) == sorted(set(named))


@settings(deadline=None)
@given(st.text(max_size=3000), st.text(max_size=3000))
def test_a_description_never_repeats_a_huge_value(text: str, other: str) -> None:
    call = call_of(
        {"request_id": text, "supersede_key": other}, harness=text + "x", model=other * 10, tasks=[text], device=text + "!"
    )
    for _, description in violations(call):
        assert len(description) < 1000
        assert "\n" not in description


# Output folders.


@pytest.mark.parametrize(
    ("output_dir", "allowed"),
    [("", True), ("run1", True), ("a/b/../c", True), ("..", False), ("../x", False), ("a/../../x", False), ("/etc", False)],
)
def test_an_output_dir_stays_below_the_output_root(tmp_path: Path, output_dir: str, allowed: bool) -> None:
    root = tmp_path / "root"
    root.mkdir()
    assert (fields(call_of(output_dir=output_dir), output_root=root) == []) is allowed


def test_an_absolute_output_dir_inside_the_root_is_taken(tmp_path: Path) -> None:
    assert fields(call_of(output_dir=str(tmp_path / "x")), output_root=tmp_path) == []


def test_a_link_does_not_lead_out_of_the_output_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    assert fields(call_of(output_dir="link/x"), output_root=root) == ["request.output_dir"]


@pytest.mark.parametrize("output_dir", ["a\0b", "a\nb", "x" * 5000])
def test_an_output_dir_that_is_no_path_is_refused(tmp_path: Path, output_dir: str) -> None:
    assert fields(call_of(output_dir=output_dir), output_root=tmp_path) == ["request.output_dir"]


# Ids, pages, filters, watches.


@pytest.mark.parametrize("job_id", [UUID, UUID.upper()])
def test_a_uuid_is_taken_in_either_case(job_id: str) -> None:
    assert validation.require_job_id(job_id) == UUID


@pytest.mark.parametrize(
    "job_id",
    ["x", UUID[:-1], UUID + "0", UUID.replace("-", ""), "{" + UUID + "}", f"urn:uuid:{UUID}", f" {UUID}", "\u0663" * 36],
)
def test_what_is_no_uuid_is_refused(job_id: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        validation.require_job_id(job_id)
    assert [violation.field for violation in caught.value.violations] == ["job_id"]


def test_an_id_is_required() -> None:
    with pytest.raises(InvalidRequestError, match="is required"):
        validation.require_job_id("")


def refused(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except InvalidRequestError as error:
        return named(error.violations)
    return []


@settings(deadline=None)
@given(st.text(min_size=1))
def test_any_text_is_a_uuid_or_an_invalid_request(job_id: str) -> None:
    assert refused(lambda: validation.require_job_id(job_id)) == ["job_id"]


@pytest.mark.parametrize(("asked", "expected"), [(0, 50), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)])
def test_a_page_size_has_a_default_and_a_bound(asked: int, expected: int) -> None:
    assert validation.page_size_of(asked, 50, 1000) == expected


def named(found: Iterable[FieldViolation]) -> list[str]:
    return [violation.field for violation in found]


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        (JobFilter(), []),
        (JobFilter(statuses=[1, 2, 3, 4, 5], models=["m"], tasks=["t"], harnesses=["h"], labels={"a": "b"}), []),
        (JobFilter(created_after=Timestamp(seconds=1), created_before=Timestamp(seconds=2)), []),
        (JobFilter(statuses=[1, 0, 77]), ["filter.statuses[1]", "filter.statuses[2]"]),
        (JobFilter(labels={"a b": "x"}), ["filter.labels"]),
        (JobFilter(labels={"a": "x" * 256}), ["filter.labels['a']"]),
        (JobFilter(owners=["alice", ""]), []),
        (JobFilter(models=["m"] * 1001), ["filter.models"]),
        (JobFilter(owners=["m"] * 1001), ["filter.owners"]),
        (JobFilter(tasks=["m"] * 1001, harnesses=["m"] * 1001), ["filter.tasks", "filter.harnesses"]),
        (JobFilter(created_after=Timestamp(seconds=-1)), ["filter.created_after"]),
        (JobFilter(created_before=Timestamp(seconds=7_258_118_399)), []),  # the last second before 2200
        (JobFilter(created_before=Timestamp(seconds=7_258_118_400)), ["filter.created_before"]),
        (JobFilter(created_before=Timestamp(seconds=2**62)), ["filter.created_before"]),
        (JobFilter(created_before=Timestamp(nanos=-1)), ["filter.created_before"]),
        (JobFilter(created_before=Timestamp(nanos=10**9)), ["filter.created_before"]),
        (JobFilter(label_selector="run=x,step!=5,team in (a,b),!draft", job_id_prefix="0B54E7A6-3a"), []),
        (JobFilter(label_selector="run==x==y"), ["filter.label_selector"]),
        (JobFilter(label_selector="x" * 4097), ["filter.label_selector"]),
        (JobFilter(job_id_prefix="0b5"), ["filter.job_id_prefix"]),
        (
            JobFilter(statuses=[77], label_selector="!", job_id_prefix="x"),
            ["filter.statuses[0]", "filter.label_selector", "filter.job_id_prefix"],
        ),
    ],
)
def test_every_bad_field_of_a_filter_is_named(jobs: JobFilter, expected: list[str]) -> None:
    assert named(validation.job_filter(jobs)) == expected


def test_a_bad_selector_is_refused_with_the_place_and_what_was_expected() -> None:
    (violation,) = validation.job_filter(JobFilter(label_selector="run=x,step>5"))
    expected = "at character 11: expected an operator (= == != in notin), `,` or the end, found `>`"
    assert violation == FieldViolation("filter.label_selector", expected)


def test_a_filter_of_very_many_statuses_is_refused() -> None:
    assert named(validation.job_filter(JobFilter(statuses=[1] * 40_000))) == ["filter.statuses"]


@pytest.mark.parametrize(
    ("after", "heartbeat", "expected"),
    [
        (0, None, []),
        (2**63 - 1, Duration(nanos=100_000_000), []),
        (-1, None, ["after_revision"]),
        (0, Duration(), []),
        (0, Duration(nanos=99_000_000), ["heartbeat_interval"]),
        (-5, Duration(seconds=-1), ["after_revision", "heartbeat_interval"]),
    ],
)
def test_every_bad_option_of_a_watch_is_named(after: int, heartbeat: Duration | None, expected: list[str]) -> None:
    for call in (WatchJobRequest, WatchJobsRequest):
        assert named(validation.watch(call(after_revision=after, heartbeat_interval=heartbeat))) == expected


def test_every_bad_option_of_a_log_is_named() -> None:
    bad = ReadLogRequest(offset=-1, attempt=-1, heartbeat_interval=Duration(nanos=1))
    assert named(validation.log(bad)) == ["offset", "attempt", "heartbeat_interval"]
    assert named(validation.log(ReadLogRequest(heartbeat_interval=Duration()))) == []


def test_a_cancel_reason_is_one_line_of_at_most_1000_characters() -> None:
    assert named(validation.cancel_reason("x" * 1000)) == []
    assert named(validation.cancel_reason("x" * 1001)) == ["reason"]
    assert named(validation.cancel_reason("a\nb")) == ["reason"]


# Page tokens.


@settings(deadline=None)
@given(position=st.integers(0, 2**63 - 1), model=st.text(max_size=20))
def test_a_page_token_comes_back_as_it_was(position: int, model: str) -> None:
    listing = JobFilter(models=[model])
    token = page_tokens.encode(position, listing)
    assert page_tokens.decode(token, listing) == position
    assert token.isascii()
    assert "=" not in token


def test_no_token_is_the_first_page() -> None:
    assert page_tokens.decode("", JobFilter()) is None


def test_the_order_of_labels_in_the_filter_does_not_matter() -> None:
    token = page_tokens.encode(7, JobFilter(labels={"a": "1", "b": "2"}))
    assert page_tokens.decode(token, JobFilter(labels={"b": "2", "a": "1"})) == 7


def test_a_token_of_another_filter_is_refused() -> None:
    token = page_tokens.encode(7, JobFilter(models=["a"]))
    with pytest.raises(InvalidRequestError) as caught:
        page_tokens.decode(token, JobFilter(models=["b"]))
    assert [violation.field for violation in caught.value.violations] == ["page_token"]


@settings(deadline=None)
@given(st.text())
def test_any_text_is_a_token_or_an_invalid_request(token: str) -> None:
    assert refused(lambda: page_tokens.decode(token, JobFilter())) == (["page_token"] if token else [])


@pytest.mark.parametrize("position", [2**63, 10**30, -(2**64)])
def test_a_token_with_a_position_that_no_job_can_have_is_refused(position: int) -> None:
    token = page_tokens.encode(position, JobFilter())
    with pytest.raises(InvalidRequestError):
        page_tokens.decode(token, JobFilter())


# Nesting depth.


def nested(depth: int) -> SubmitJobRequest:
    call = call_of()
    struct = call.request.model_args
    for _ in range(depth):
        struct = struct.fields["a"].struct_value
    struct.fields["a"].number_value = 1
    return call


def test_arguments_that_are_taken_can_be_read_again_in_every_answer() -> None:
    deepest = 0
    for depth in range(1, 60):
        try:
            call = SubmitJobRequest.FromString(nested(depth).SerializeToString())
        except DecodeError:
            break
        if violations(call):
            break
        deepest = depth
    assert deepest >= 5
    job = JobInfo(request=nested(deepest).request)
    ListJobsResponse.FromString(ListJobsResponse(jobs=[job]).SerializeToString())
    JobEvent.FromString(JobEvent(job=job).SerializeToString())


FIELDS = st.lists(st.sampled_from(("a", "ab", ".a", ".b", "[0]", "[1]", "[", ".")), min_size=1, max_size=4).map("".join)


@given(named=st.lists(FIELDS), field=FIELDS)
def test_a_field_was_named_already_by_itself_or_as_a_part_or_the_whole_of_another(named: list[str], field: str) -> None:
    pairs = [pair for other in named for pair in ((field, other), (other, field))]
    expected = any(whole == part or part.startswith((f"{whole}.", f"{whole}[")) for whole, part in pairs)
    assert (field in evaluations._NamedFields(named)) == expected


def test_a_job_must_fit_the_widest_node_since_it_runs_on_one() -> None:
    assert not list(validation.submission(call_of(num_gpus=4), HARNESSES, (2, 4), None))
    ((field, description),) = validation.submission(call_of(num_gpus=5), HARNESSES, (2, 4), None)
    assert (field, description) == ("request.num_gpus", "asks for 5 GPUs, and no node of this server has more than 4")
