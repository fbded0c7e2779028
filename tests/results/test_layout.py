"""Reading output directories: real ones of lmms-eval, and ones that no sane program would write."""

import errno
import json
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.errors import RunFailedError
from evalrpc.results import layout
from evalrpc.results.layout import missing_tasks, read_results, samples_task, unread_results
from evalrpc.v1.results_pb2 import Metric, ModelResult

DATA = Path(__file__).parent.parent / "data" / "lmms_eval"
WITH_RESULTS = sorted(case.name for case in DATA.iterdir() if (case / "output").is_dir())
STAMP = "20260214_103045"


def real(case: str) -> dict[str, ModelResult]:
    return read_results(DATA / case / "output", "dummy")


def write(folder: Path, document: object, stamp: str = STAMP) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stamp}_results.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def metrics_of(tmp_path: Path, row: object, **more: object) -> list[Metric]:
    write(tmp_path / "m", {"results": {"task": row}, **more})
    return list(read_results(tmp_path, "x")["m"].metrics)


def failure(tmp_path: Path) -> str:
    with pytest.raises(RunFailedError) as caught:
        read_results(tmp_path, "x")
    assert caught.value.job_error.reason == "RESULTS_INVALID"
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("case", WITH_RESULTS)
def test_metrics_of_a_real_run_are_those_of_its_file(case: str) -> None:
    ((_, result),) = real(case).items()
    rows = json.loads(Path(result.results).read_text())["results"]
    written = {
        (task, *key.split(",")): value
        for task, row in rows.items()
        for key, value in row.items()
        if isinstance(value, float | int) and "_stderr" not in key and not key.startswith("bypass")
    }
    assert {(m.task, m.metric, m.filter): m.value for m in result.metrics} == written
    assert bool(written) != (case == "ok_predict_only")


@pytest.mark.parametrize(
    ("case", "model"),
    [
        ("ok_two_tasks", "stub"),
        ("ok_llava_hf_local_path", "models__tiny-llava"),
        ("ok_predict_only", "acme__m"),
        ("collision_same_second", "acme__m"),
        ("peer_server_job_dir", "models__tiny-llava"),
    ],
)
def test_a_model_folder_names_the_model(case: str, model: str) -> None:
    assert list(real(case)) == [model]


def test_files_without_a_model_folder_go_under_the_name_asked_for() -> None:
    assert list(real("ok_no_model_name_flat")) == ["dummy"]


def test_two_tasks_have_sorted_metrics_and_a_samples_file_each() -> None:
    result = real("ok_two_tasks")["stub"]
    assert [metric.task for metric in result.metrics] == ["tiny_b", "tiny_gen"]
    assert [samples_task(path) for path in result.samples] == ["tiny_b", "tiny_gen"]
    assert result.metrics[0] == Metric(
        task="tiny_b",
        metric="tiny_acc",
        filter="none",
        value=0.25,
        standard_error=0.09933992677987828,
        higher_is_better=True,
        sample_count=20,
    )


def test_a_stderr_that_is_not_available_is_absent() -> None:
    (metric,) = real("ok_limit1_na_stderr")["acme__m"].metrics
    assert not metric.HasField("standard_error")
    assert metric.sample_count == 1


def test_the_latest_timestamp_wins_with_its_own_samples(tmp_path: Path) -> None:
    for stamp, value in (("20260101_000000", 1), ("20270101_000000", 3), ("20261231_235959", 2)):
        write(tmp_path / "m", {"results": {"t": {"acc,none": value}}}, stamp)
        (tmp_path / "m" / f"{stamp}_samples_t.jsonl").touch()
    result = read_results(tmp_path, "x")["m"]
    assert result.metrics[0].value == 3
    assert [Path(path).name for path in result.samples] == ["20270101_000000_samples_t.jsonl"]


def test_every_model_folder_is_read_whatever_its_name(tmp_path: Path) -> None:
    names = {"acme__tiny-model v1.0", "ünï😀", "n" * 255, "a\nb", ".."[:1] + "hidden"}
    for name in names:
        write(tmp_path / name, {"results": {}})
    assert read_results(tmp_path, "x").keys() == names


def test_a_missing_or_empty_folder_has_no_results(tmp_path: Path) -> None:
    assert read_results(tmp_path, "x") == {}
    assert read_results(tmp_path / "none", "x") == {}


def test_links_are_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    secret = write(outside, {"results": {}})
    output = tmp_path / "output"
    (output / "m").mkdir(parents=True)
    (output / "linked").symlink_to(outside)
    (output / "m" / secret.name).symlink_to(secret)
    assert read_results(output, "x") == {}


def test_samples_that_are_links_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "m", {"results": {}})
    (tmp_path / "m" / f"{STAMP}_samples_t.jsonl").symlink_to("/etc/hostname")
    assert not read_results(tmp_path, "x")["m"].samples


def test_other_files_are_ignored(tmp_path: Path) -> None:
    write(tmp_path / "m", {"results": {}})
    for name in ("results.json", "2026_results.json", f"{STAMP}_results.json.tmp", f"{STAMP}_samples_.jsonl", "run.log"):
        (tmp_path / "m" / name).write_text("{")
    (tmp_path / f"{STAMP}_results.json").mkdir()
    assert list(read_results(tmp_path, "x")) == ["m"]


def test_nan_and_infinity_survive(tmp_path: Path) -> None:
    write(tmp_path / "m", '{"results": {"t": {"a,none": NaN, "b,none": -Infinity, "b_stderr,none": NaN}}}')
    a, b = read_results(tmp_path, "x")["m"].metrics
    assert math.isnan(a.value)
    assert b.value == -math.inf
    assert math.isnan(b.standard_error)


def test_what_is_not_a_number_is_no_metric(tmp_path: Path) -> None:
    row = {
        "alias": 3,
        " ": " ",
        "samples": 9,
        "a,none": "N/A",
        "b,none": None,
        "c,none": True,
        "d,none": [1],
        "e,none": 10**400,
    }
    assert metrics_of(tmp_path, row) == []


def test_derived_errors_are_no_metrics_of_their_own(tmp_path: Path) -> None:
    row = {"acc,f": 1, "acc_stderr,f": 0.5, "acc_stderr_clt,f": 0.6, "acc_stderr_clustered,f": 0.7}
    assert metrics_of(tmp_path, row) == [Metric(task="task", metric="acc", filter="f", value=1, standard_error=0.5)]


def test_a_metric_without_a_filter_has_an_empty_one(tmp_path: Path) -> None:
    assert metrics_of(tmp_path, {"acc": 1, "acc_stderr": 2}) == [Metric(task="task", metric="acc", value=1, standard_error=2)]


def test_filters_of_one_metric_are_metrics_side_by_side(tmp_path: Path) -> None:
    row = {"em,strict": 1, "em,flexible": 2, "em_stderr,strict": 3}
    assert [(m.filter, m.value, m.HasField("standard_error")) for m in metrics_of(tmp_path, row)] == [
        ("flexible", 2, False),
        ("strict", 1, True),
    ]


@pytest.mark.parametrize(
    "size", [None, "20", {"effective": "many"}, {"effective": -1}, {"effective": 1e300}, {"effective": math.nan}]
)
def test_a_sample_count_that_makes_no_sense_is_absent(tmp_path: Path, size: object) -> None:
    (metric,) = metrics_of(tmp_path, {"a,b": 1}, **{"n-samples": {"task": size}})
    assert not metric.HasField("sample_count")


@pytest.mark.parametrize("direction", [None, "yes", 1, []])
def test_a_direction_that_is_no_boolean_is_absent(tmp_path: Path, direction: object) -> None:
    (metric,) = metrics_of(tmp_path, {"a,b": 1}, higher_is_better={"task": {"a": direction}})
    assert not metric.HasField("higher_is_better")


def test_groups_are_tasks_too(tmp_path: Path) -> None:
    (metric,) = metrics_of(tmp_path, None, groups={"g": {"acc,none": 0.5}})
    assert metric.task == "g"


def test_more_metrics_than_are_kept_make_results_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "m", {"results": {f"task {number}": {"acc,none": 0.5} for number in range(1000)}})
    size_bytes = sum(result.ByteSize() for result in read_results(tmp_path, "x").values())
    monkeypatch.setattr(layout, "MAX_KEPT_BYTES", size_bytes)
    assert len(read_results(tmp_path, "x")["m"].metrics) == 1000
    monkeypatch.setattr(layout, "MAX_KEPT_BYTES", size_bytes - 1)
    assert failure(tmp_path).startswith(f"1000 metrics of 1 models take {size_bytes} bytes; at most {size_bytes - 1} ")


@pytest.mark.parametrize("count", [64, 65])
def test_a_job_has_results_of_64_models_at_most(tmp_path: Path, count: int) -> None:
    for number in range(count):
        write(tmp_path / f"m{number}", {"results": {"t": {"acc,none": 0.5}}})
    if count == 64:
        assert len(read_results(tmp_path, "x")) == 64
    else:
        assert failure(tmp_path) == "there are results of 65 models; at most 64 are kept"


def test_a_name_that_utf8_cannot_hold_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "m", '{"results": {"t\\ud800": {"acc,none": 1}}}')
    assert read_results(tmp_path, "x")["m"].metrics[0].task == "t?"


def test_a_model_whose_name_utf8_cannot_hold_makes_results_invalid(tmp_path: Path) -> None:
    write(tmp_path / "mü\udcff\n", {"results": {}})
    assert failure(tmp_path) == r"the name 'mü\xff ' is not UTF-8"


def test_files_and_folders_of_any_name_beside_the_results_fail_no_run(tmp_path: Path) -> None:
    write(tmp_path / "m", {"results": {"t": {"acc,none": 0.5}}})
    (tmp_path / "cache\udcff").mkdir()
    for name in ("x\udcff", "two\nlines", "20260214_103045_samples_\udcff.jsonl", "20260214_103045_samples_t.jsonl"):
        (tmp_path / "m" / name).touch()
    (result,) = read_results(tmp_path, "x").values()
    assert [metric.value for metric in result.metrics] == [0.5]
    assert list(result.samples) == [str(tmp_path / "m" / "20260214_103045_samples_t.jsonl")]
    assert list(result.warnings) == ["1 files of samples are left out: their names are not UTF-8"]


def test_a_folder_that_can_not_be_read_fails_a_run_only_without_other_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir()
    scan = layout.scan_folder

    def scan_unlocked(folder: Path, below: str = "") -> AbstractContextManager[Iterator["os.DirEntry[str]"]]:
        if below == "locked":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(folder, below)

    monkeypatch.setattr(layout, "scan_folder", scan_unlocked)
    assert failure(tmp_path) == "the output folder can't be read: Permission denied"
    write(tmp_path / "m", {"results": {"t": {"acc,none": 0.5}}})
    results = read_results(tmp_path, "x")
    assert list(results) == ["m"]
    assert list(results["m"].warnings) == ["results may be missing: a folder below the output folder can't be read"]


def test_results_in_a_folder_whose_name_is_not_utf8_fail_a_run_only_without_others(tmp_path: Path) -> None:
    write(tmp_path / "m\udcff", {"results": {"t": {"acc,none": 0.1}}})
    assert failure(tmp_path) == r"the name 'm\xff' is not UTF-8"
    write(tmp_path / "m", {"results": {"t": {"acc,none": 0.5}}})
    results = read_results(tmp_path, "x")
    assert list(results) == ["m"]
    assert list(results["m"].warnings) == ["results may be missing: the name of a folder with results is not UTF-8"]


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_truncated_file_makes_results_invalid(tmp_path: Path, cut: int) -> None:
    text = Path(real("ok_two_tasks")["stub"].results).read_text()
    write(tmp_path / "m", text[:cut].rstrip() or "{")
    assert failure(tmp_path).startswith("20260214_103045_results.json is not valid JSON: ")


@pytest.mark.parametrize("text", ["[]", "1", "null", "{}", '{"results": []}', '{"results": null}'])
def test_a_file_without_results_makes_results_invalid(tmp_path: Path, text: str) -> None:
    write(tmp_path / "m", text)
    assert failure(tmp_path) == "20260214_103045_results.json has no table of results"


def test_brackets_without_end_make_results_invalid(tmp_path: Path) -> None:
    write(tmp_path / "m", '{"results":' + "[" * 200_000)
    assert "is not valid JSON" in failure(tmp_path)


def test_bytes_that_are_no_text_make_results_invalid(tmp_path: Path) -> None:
    write(tmp_path / "m", "").write_bytes(b"\xff\xfe\x00{")
    assert "is not valid JSON" in failure(tmp_path)


KEYS = st.sampled_from(("t", "acc,none", "acc_stderr,none", "effective", "tag", "ü\ud800", ""))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)
SECTIONS = ("results", "groups", "higher_is_better", "n-samples", "group_subtasks", "configs")


@settings(deadline=None)
@given(document=st.dictionaries(st.sampled_from(SECTIONS), JSON | st.dictionaries(st.just("t"), JSON)))
def test_any_json_gives_a_result_or_results_invalid(
    document: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    write(folder, document)
    if isinstance(document.get("results"), dict):
        result = read_results(folder, "m")["m"]
        assert ModelResult.FromString(result.SerializeToString()).results
        assert missing_tasks(result, ["t"]) in ([], ["t"])
    else:
        with pytest.raises(RunFailedError, match="has no table of results"):
            read_results(folder, "m")


def result_of(tmp_path: Path, document: dict[str, object]) -> ModelResult:
    write(tmp_path, {"results": {}, **document})
    return read_results(tmp_path, "m")["m"]


@pytest.mark.parametrize(
    ("document", "tasks"),
    [
        ({"results": {"a": {}, "b": {}}}, ["a", "b"]),
        ({"results": {"a": {}}, "group_subtasks": {"g": ["a"]}}, ["g"]),
        ({"results": {"a": {}}, "group_subtasks": {"g": ["h"], "h": ["a"]}}, ["g"]),
        ({"results": {"a": {}}, "groups": {"g": {}}}, ["g", "a"]),
        ({"results": {"a": {}}, "configs": {"a": {"tag": "tagged"}}}, ["a", "tagged"]),
        ({"results": {"a": {}}, "configs": {"a": {"tag": ["one", "tagged"]}}}, ["tagged"]),
        ({"results": {"a": {}}}, ["a tag that only expands to a"]),
    ],
)
def test_tasks_groups_and_tags_that_were_run_are_not_missing(
    tmp_path: Path, document: dict[str, object], tasks: list[str]
) -> None:
    assert missing_tasks(result_of(tmp_path, document), tasks) == []


def test_a_task_that_nothing_came_of_is_missing(tmp_path: Path) -> None:
    result = result_of(tmp_path, {"results": {"a": {}, "b": {}}, "group_subtasks": {"g": ["b"], "a": []}})
    assert missing_tasks(result, ["z", "a", "g", "y"]) == ["y", "z"]


def test_a_task_is_missing_also_beside_those_of_a_tag(tmp_path: Path) -> None:
    document = {"results": {"a": {}, "b": {}}, "configs": {"a": {"tag": ["some"]}, "b": {"tag": "some"}}}
    assert missing_tasks(result_of(tmp_path, document), ["some", "z"]) == ["z"]


def test_only_a_samples_file_has_a_task() -> None:
    assert samples_task("/d/m/20260214_103045_samples_refcoco+_bbox.jsonl") == "refcoco+_bbox"
    assert samples_task("/d/m/20260214_103045_results.json") is None


@pytest.mark.parametrize(("text", "value"), [("0.6666667", 0.6666667), ("1e-3", 0.001), ("-5", -5.0), ("inf", math.inf)])
def test_a_number_that_is_written_as_text_is_a_metric(tmp_path: Path, text: str, value: float) -> None:
    (metric,) = metrics_of(tmp_path, {"f1,none": text, "f1_stderr,none": "0.05"})
    assert (metric.value, metric.standard_error) == (value, 0.05)


@pytest.mark.parametrize("text", ["N/A", "", "none", "1,5", "0x10", "1_000", "1 2", "٣", "9" * 1000])
def test_other_text_is_no_metric(tmp_path: Path, text: str) -> None:
    assert not metrics_of(tmp_path, {"f1,none": text})


def test_the_stand_in_for_no_metric_is_none(tmp_path: Path) -> None:
    assert not metrics_of(tmp_path, {"bypass,none": 999, "bypass_stderr,none": "N/A"})


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["results.json"], "results.json"),
        (["m/results_tasks.json"], "m/results_tasks.json"),
        (["acme_0214_1030_results.json", "x.json"], "acme_0214_1030_results.json"),
        (["a/20260214-103045_results.jsonl", "b/samples.jsonl"], "a/20260214-103045_results.jsonl"),
        (["results\x1b[31m.json"], "results\\x1b[31m.json"),
        (
            ["x.json", "acme/lm-7b/results_2026-02-14T10-30-45.274536.json"],
            "acme/lm-7b/results_2026-02-14T10-30-45.274536.json",
        ),
        (
            ["0214_1030_llava_args_ab12/results.json", "0214_1030_llava_args_ab12/t.json"],
            "0214_1030_llava_args_ab12/results.json",
        ),
        (["samples.jsonl", "m/scores.json"], ""),
        ([], ""),
    ],
)
def test_what_looks_like_results_and_is_not_read_can_be_named(files: list[str], name: str, tmp_path: Path) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}")
    assert not read_results(tmp_path, "m")
    assert unread_results(tmp_path) == name
