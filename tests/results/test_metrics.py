"""What a harness's aggregate document says besides plain numbers: groups, versions, hashes, time, and unknown entries."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from harness_cases import DATA
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.protobuf.times import seconds_of
from evalrpc.results.layout import read_results
from evalrpc.results.metrics import MAX_EXTRA_BYTES, MAX_TASK_EXTRA_BYTES, model_result, number
from evalrpc.v1.results_pb2 import ModelResult, TaskResult


def real(case: str) -> ModelResult:
    (result,) = read_results(DATA / case / "output", "dummy").values()
    return result


def tasks_of(result: ModelResult) -> Mapping[str, TaskResult]:
    return {task.task: task for task in result.tasks}


def result_of(row: Mapping[str, Any] | None = None, **document: Any) -> ModelResult:
    return model_result({"results": {"t": row or {}}, **document})


def task_of(row: Mapping[str, Any] | None = None, **document: Any) -> TaskResult:
    return tasks_of(result_of(row, **document))["t"]


@pytest.mark.parametrize(
    ("case", "groups"),
    [
        ("lm_eval/ok_groups", {"sums": ["sums_a", "sums::inner"], "sums::inner": ["sums_b"]}),
        ("lmms_eval/ok_group", {"sums": ["sums_a", "sums_b"]}),
        ("lm_eval/ok_hf_local_path", {"tiny_group": ["tiny_mc", "tiny_gen"]}),
        ("lmms_eval/ok_two_tasks", {}),
    ],
)
def test_groups_of_a_real_run_are_apart_from_their_tasks(case: str, groups: dict[str, list[str]]) -> None:
    result = real(case)
    assert {task.task: list(task.subtasks) for task in result.tasks if task.is_group} == groups
    assert {metric.task for metric in result.metrics if metric.is_group} <= groups.keys()
    assert not groups.keys() & {metric.task for metric in result.metrics if not metric.is_group}
    assert [task.task for task in result.tasks] == sorted(tasks_of(result))


def test_the_metrics_of_a_group_count_the_samples_that_they_sum_up() -> None:
    result = real("lm_eval/ok_groups")
    assert {metric.task: metric.sample_count for metric in result.metrics} == {
        "sums": 12,
        "sums::inner": 6,
        "sums_a": 6,
        "sums_b": 6,
    }
    assert tasks_of(result)["sums"].effective_sample_count == 12


def test_a_task_of_a_real_run_has_all_that_was_written_of_it() -> None:
    written = json.loads(Path(real("lm_eval/ok_groups").results).read_text())
    task = tasks_of(real("lm_eval/ok_groups"))["sums_a"]
    assert (task.version, task.num_fewshot) == ("2.0", 0)
    assert (task.original_sample_count, task.effective_sample_count) == (10, 6)
    assert task.samples_hash == written["task_hashes"]["sums_a"]
    assert len(task.config_hash) == 64


@pytest.mark.parametrize(
    ("case", "versions", "seconds"),
    [
        ("lm_eval/ok_groups", {"lm_eval": "0.4.13", "transformers": "5.23.0"}, 28.10358324300023),
        ("lmms_eval/ok_two_tasks", {"lmms_eval": "unknown@unknown"}, 2.1662753789996714),
    ],
)
def test_a_real_run_says_with_what_and_how_long(case: str, versions: dict[str, str], seconds: float) -> None:
    assert dict(real(case).harness_versions) == versions
    assert seconds_of(real(case).total_evaluation_time) == pytest.approx(seconds)


def test_the_same_task_has_the_same_hash_whatever_the_model_and_the_process() -> None:
    first, second = (tasks_of(real(f"lm_eval/{case}"))["tiny_gen"] for case in ("ok_hf_local_path", "ok_local_completions"))
    assert first.config_hash == second.config_hash
    runs = [real(f"lmms_eval/{case}") for case in ("ok_openai_stub", "ok_no_model_name_flat")]
    texts = [json.loads(Path(run.results).read_text())["configs"]["tiny_gen"]["doc_to_text"] for run in runs]
    assert texts[0] != texts[1], "one and the same function, at two addresses"
    assert len({tasks_of(run)["tiny_gen"].config_hash for run in runs}) == 1


@pytest.mark.parametrize(
    ("config", "same"),
    [
        ({"b": 1, "a": [1, 2]}, True),
        ({"a": [1, 2], "b": 1, "metadata": {"pretrained": "other", "config_source": "/elsewhere"}}, True),
        ({"a": [2, 1], "b": 1}, False),
        ({"a": [1, 2], "b": 1, "metadata": {"version": 2}}, False),
        ({"a": [1, 2]}, False),
    ],
)
def test_the_hash_is_that_of_the_definition(config: dict[str, Any], same: bool) -> None:
    def digest(config: dict[str, Any]) -> str:
        return task_of(configs={"t": config}, config={"model_args": {"pretrained": "x"}}).config_hash

    assert (digest(config) == digest({"a": [1, 2], "b": 1})) is same


@pytest.mark.parametrize("config", [None, {}, [], "x", 1])
def test_without_a_configuration_there_is_no_hash(config: object) -> None:
    assert not task_of(configs={"t": config}).config_hash


@pytest.mark.parametrize(
    ("version", "text"), [(1, "1"), (0.1, "0.1"), ("v2", "v2"), ("N/A", ""), (None, ""), (True, ""), ([1], ""), ("x" * 999, "")]
)
def test_a_version_is_as_the_harness_writes_it(version: object, text: str) -> None:
    assert task_of(versions={"t": version}).version == text
    assert dict(result_of(acme_version=version).harness_versions) == ({"acme": text} if text else {})


@pytest.mark.parametrize("seconds", [None, "soon", "", -1, "-1", "nan", "inf", math.nan, 1e300, True, [], "1e99"])
def test_a_time_that_makes_no_sense_is_absent(seconds: object) -> None:
    assert not result_of(total_evaluation_time_seconds=seconds).HasField("total_evaluation_time")


def test_what_nobody_knows_is_kept() -> None:
    row = {"acc,none": 1, "acc_stderr,none": 0.5, "acc_stderr_clt,none": 0.6, "by_topic": {"sky": [1, None]}, "note": "fine"}
    result = result_of({"alias": "t", "name": "t", "sample_len": 3, **row}, chat_template_sha=None, seeds={"torch": 7})
    assert [metric.metric for metric in result.metrics] == ["acc"]
    assert json_format.MessageToDict(tasks_of(result)["t"].extra) == {
        "acc_stderr_clt,none": 0.6,
        "by_topic": {"sky": [1, None]},
        "note": "fine",
    }
    assert json_format.MessageToDict(result.extra) == {"seeds": {"torch": 7}}


def test_where_all_is_known_there_is_no_struct() -> None:
    result = result_of({"acc": 1, "acc_stderr": "N/A"}, configs={}, versions={})
    assert not result.HasField("extra")
    assert not tasks_of(result)["t"].HasField("extra")


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("x" * 300, True),
        ("x" * 600, False),
        (list(range(300)), False),
        (nested(8), True),
        (nested(9), False),
        (nested(200), False),
        ({"n" * 600: 1}, False),
    ],
)
def test_what_is_large_or_deep_is_left_to_the_file(value: object, kept: bool) -> None:
    assert ("odd" in result_of(odd=value, small=1).extra.fields) is kept
    assert "small" in result_of(odd=value, small=1).extra.fields


def test_however_many_there_are_they_stay_within_bounds() -> None:
    many = {f"key {number}": "x" * 100 for number in range(1000)}
    result = result_of(many, **many)
    assert MAX_EXTRA_BYTES / 2 < result.extra.ByteSize() <= MAX_EXTRA_BYTES
    assert MAX_TASK_EXTRA_BYTES / 2 < tasks_of(result)["t"].extra.ByteSize() <= MAX_TASK_EXTRA_BYTES


def test_every_client_can_write_it_as_json() -> None:
    odd = {"nan": math.nan, "inf": [math.inf, -math.inf], "huge": 10**400, "half": "\ud800", "\udfff": 1}
    assert json_format.MessageToDict(result_of(odd=odd).extra)["odd"] == {
        "nan": "NaN",
        "inf": ["Infinity", "-Infinity"],
        "huge": str(10**400),
        "half": "?",
        "?": 1,
    }


WORDS = st.sampled_from(
    ("t", "g", "acc,none", "acc_stderr,none", "effective", "sample_count", "metadata", "x_version", "\ud800")
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=10,
)
TABLES = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "n-samples", "higher_is_better")
OTHERS = ("task_hashes", "total_evaluation_time_seconds", "config", "odd_version", "odd")


@settings(deadline=None)
@given(document=st.dictionaries(st.sampled_from((*TABLES, *OTHERS)), JSON))
def test_any_document_gives_a_message_that_every_client_can_read(document: dict[str, Any]) -> None:
    result = model_result(document)
    json_format.Parse(json_format.MessageToJson(result), ModelResult())
    assert ModelResult.FromString(result.SerializeToString()).tasks == result.tasks
    assert {metric.task for metric in result.metrics} <= set(tasks_of(result))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("0.5", 0.5), (" 6.6e-1 ", 0.66), ("+1", 1.0), ("-.5E2", -50.0)),
        *(("np.float64(0.25)", 0.25), ("tensor(0.2500)", 0.25)),
        *(("tensor(0.2500, device='cuda:0', dtype=torch.float64)", 0.25), ("Array(0.25, dtype=float32)", 0.25)),
        *(("array(0.25)", 0.25), ("torch.tensor(2)", 2.0), ("float32(0.25)", 0.25)),
        *(("NaN", math.nan), ("np.float32(nan)", math.nan), ("-Infinity", -math.inf), ("INF", math.inf)),
        *(("[0.25]", 0.25), ("tensor([0.2500], device='cuda:0')", 0.25), ("tf.Tensor(0.25, shape=(), dtype=float32)", 0.25)),
        *(("tensor(0.2500, grad_fn=<MeanBackward0>)", 0.25), ("array([0.25, 0.5])", None), ("[]", None)),
        *(("np.longdouble('0.25')", 0.25), ("Decimal('0.25')", 0.25), ("numpy.uint8(3)", 3.0), ("[[0.25]]", 0.25)),
        *(("[np.float32(0.25)]", 0.25), ("tensor([[0.2500]])", 0.25), ("[0.25", None), ("[0.25], [0.5]", None)),
        *(("np.True_", None), ("True", None), ("12 ms", None), ("1/2", None), ("(0.5+1j)", None), ("[[[[[0.5]]]]]", None)),
        *(("50%", None), ("1_000", None), ("0.5)", None), ("f(0.5)", None), ("", None), ("\u0663", None), ("0.5, 0.6", None)),
    ],
)
def test_a_number_that_is_written_as_text_is_one(text: str, value: float | None) -> None:
    assert repr(number(text)) == repr(value)


def test_counts_may_be_written_as_text_too() -> None:
    document = {"n-shot": {"t": "5"}, "n-samples": {"t": {"original": "12", "effective": "np.int64(10)"}}}
    task = task_of({"acc,none": "0.5"}, **document)
    assert (task.num_fewshot, task.original_sample_count, task.effective_sample_count) == (5, 12, 10)
    assert [metric.sample_count for metric in result_of({"acc,none": "0.5"}, **document).metrics] == [10]


def test_where_no_table_has_the_shots_the_configuration_does() -> None:
    assert task_of(configs={"t": {"num_fewshot": 3}}).num_fewshot == 3
    assert task_of(configs={"t": {"num_fewshot": 3}}, **{"n-shot": {"t": 0}}).num_fewshot == 0
