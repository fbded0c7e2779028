"""The value of every sample, read from what the harnesses write and paired between two jobs."""

import hashlib
import json
import math
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness_cases import DATA, run_of
from hypothesis import given
from hypothesis import strategies as st

from evalrpc.analysis import sample_values
from evalrpc.analysis.sample_values import NO_VALUES, MetricKey, SampleValues, nothing_said, pair, read_samples
from evalrpc.config import HarnessSettings
from evalrpc.harnesses.inspect_ai.harness import InspectHarness
from evalrpc.reading.sample_files import SampleRows, read_lines
from evalrpc.testing.recorded_runs import exit_of, log_of, request_of, rows_of

ACC = MetricKey("acc", "none")


def read_file(path: Path, key: MetricKey = ACC) -> SampleValues:
    with path.open("rb") as file:
        return read_samples((row.values for row in SampleRows(read_lines(file, 0))), [key]).values[key]


def read(folder: Path, rows: list[Any], key: MetricKey = ACC) -> dict[int, float]:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (folder / "s.jsonl").write_text(text)
    found = read_file(folder / "s.jsonl", key)
    return dict(zip(found.ids.tolist(), found.values.tolist(), strict=True))


def values_of(path: Path, *key: str) -> list[float]:
    return read_file(path, MetricKey(*key)).values.tolist()


def plainly_read(rows: list[dict[str, Any]], key: MetricKey) -> list[float]:
    """Reference implementation: look for one metric in every row."""
    values = []
    for row in rows:
        if row.get("filter", key.filter) == key.filter:
            tables = [table for table in (row, row.get("metrics")) if isinstance(table, dict)]
            cells = [table.get(name) for table in tables for name in (key.metric, f"{key.metric},{key.filter}")]
            values += [cell for cell in cells if isinstance(cell, int | float)][:1]
    return values


CELLS = st.none() | st.integers(0, 9) | st.just("text")
TABLES = st.dictionaries(st.sampled_from(("a", "b", "a,f", "a,g", "b,f")), CELLS)
ROWS = st.builds(
    lambda table, more: table | more,
    TABLES,
    st.fixed_dictionaries(
        {}, optional={"filter": st.sampled_from(("f", "g", "h", None, [])), "metrics": TABLES | st.just("text")}
    ),
)


@given(rows=st.lists(ROWS, max_size=5), others=st.sampled_from([0, 100]))
def test_of_many_metrics_each_is_read_as_if_it_were_the_only_one(rows: list[dict[str, Any]], others: int) -> None:
    keys = [MetricKey(metric, answer_filter) for metric in "abc" for answer_filter in "fg"]
    more = [MetricKey(f"other{number}", "f") for number in range(others)]
    found = read_samples([{"doc_id": number, **row} for number, row in enumerate(rows)], [*keys, *more]).values
    assert {key: found[key].values.tolist() for key in keys} == {key: plainly_read(rows, key) for key in keys}


class CountingRow(dict[str, object]):
    """A row that counts how often its values are read."""

    taken = 0

    def __getitem__(self, name: str) -> object:
        self.taken += 1
        return super().__getitem__(name)


def test_a_row_costs_what_stands_in_it_however_many_metrics_are_wanted() -> None:
    row = CountingRow({"doc_id": 0, "m7,none": 1.0, "m8": 2.0})
    found = read_samples([row], [MetricKey(f"m{number}", "none") for number in range(1000)]).values
    assert [len(found[MetricKey(f"m{number}", "none")].ids) for number in (7, 8, 9)] == [1, 1, 0]
    assert row.taken <= 3


# What real harnesses write.


def test_samples_of_lm_eval_have_their_metrics_under_their_names() -> None:
    (folder,) = (DATA / "lm_eval" / "ok_local_completions" / "output").iterdir()
    (choices,), (answers,) = folder.glob("samples_tiny_mc_*"), folder.glob("samples_tiny_gen_*")
    rows = [json.loads(line) for line in choices.read_text().splitlines()]
    assert values_of(choices, "acc", "none") == [row["acc"] for row in rows]
    assert values_of(choices, "acc_norm", "none") == [row["acc_norm"] for row in rows]
    assert values_of(answers, "exact_match", "none") == [1, 0, 0, 0, 1]
    assert values_of(answers, "exact_match", "strict-match") == [], "rows of one filter are none of another"


def test_samples_of_lmms_eval_have_their_metrics_under_their_names() -> None:
    folder = DATA / "lmms_eval" / "ok_two_tasks" / "output" / "stub"
    assert values_of(folder / "20261123_113343_samples_tiny_gen.jsonl", "tiny_acc", "none") == [1, 0, 0, 0, 1]
    predicted = DATA / "lmms_eval" / "ok_predict_only" / "output" / "acme__m" / "20261123_103118_samples_tiny_gen.jsonl"
    assert values_of(predicted, "bypass", "none") == [], "a list is no value"


def test_samples_of_inspect_ai_have_the_mean_that_it_reports(tmp_path: Path) -> None:
    case = DATA / "inspect" / "ok_json"
    output = shutil.copytree(case / "output", tmp_path / "output")
    harness = InspectHarness(HarnessSettings("inspect-ai", "inspect-ai", python=Path("python"), include_path=(tmp_path,)))
    run = run_of(request_of(model="mockllm/model", tasks=["tiny"]), output)
    result = harness.read_results(run, exit_of(case), log_of(case))["mockllm/model"]
    assert {metric.filter for metric in result.metrics} == {"match", "includes"}
    keys = [MetricKey(metric.metric, metric.filter) for metric in result.metrics]
    found = read_samples((row.values for row in rows_of(harness, output, result.samples[0])), keys).values
    for metric, key in zip(result.metrics, keys, strict=True):
        assert len(found[key].ids) == metric.sample_count
        assert found[key].mean_is(metric.value)


def test_samples_of_inspect_ai_have_the_clusters_by_which_their_task_takes_errors(tmp_path: Path) -> None:
    output = shutil.copytree(DATA / "inspect" / "ok_json" / "output", tmp_path / "output")
    (path,) = output.iterdir()
    log = json.loads(path.read_text())
    log["results"]["scores"][1]["metrics"]["stderr"]["params"] = {"cluster": "topic"}
    for number, sample in enumerate(log["samples"]):
        sample["metadata"] = {"topic": f"t{number // 2}"}
    path.write_text(json.dumps(log))
    harness = InspectHarness(HarnessSettings("inspect-ai", "inspect-ai", python=Path("python"), include_path=(tmp_path,)))
    rows = [row.values for row in rows_of(harness, output, str(path))]
    assert [row["cluster"] for row in rows] == ["t0", "t0", "t1"]
    key = MetricKey("accuracy", "match")
    found = read_samples(rows, [key])
    assert found.has_clusters
    assert len(set(found.values[key].clusters.tolist())) == 2


# What rows may hold.


@pytest.mark.parametrize(("cell", "value"), [(1, 1.0), (0.25, 0.25), (True, 1.0), (False, 0.0), (-3, -3.0), (1e-300, 1e-300)])
def test_numbers_and_booleans_are_values(tmp_path: Path, cell: object, value: float) -> None:
    assert read(tmp_path, [{"doc_id": 0, "acc": cell}]) == {0: value}


@pytest.mark.parametrize(
    ("cell", "value"),
    [("0.25", 0.25), ("1", 1.0), ("-3", -3.0), ("1e-3", 0.001), ("True", 1.0), ("False", 0.0), ("np.True_", 1.0)],
)
def test_they_may_be_written_as_text(tmp_path: Path, cell: str, value: float) -> None:
    assert read(tmp_path, [{"doc_id": 0, "acc": cell}]) == {0: value}


@pytest.mark.parametrize("cell", [None, [1], {"value": 1}, "C", "", "1 2", "0x1", "1_000", "true", math.nan, "nan"])
def test_nothing_else_is_a_value(tmp_path: Path, cell: object) -> None:
    assert read(tmp_path, [{"doc_id": 0, "acc": cell}, {"doc_id": 1, "acc": 1}]) == {1: 1.0}


@pytest.mark.parametrize("cell", [math.inf, -math.inf, 10**400, 1e200])
def test_values_without_bounds_spoil_the_mean_and_break_nothing(tmp_path: Path, cell: float) -> None:
    found = read(tmp_path, [{"doc_id": 0, "acc": cell}, {"doc_id": 1, "acc": 1}])
    assert math.isnan(found[0])
    values = SampleValues(np.array([0, 1]), np.array([found[0], 1.0]), nothing_said(2))
    assert not values.mean_is(1.0)
    assert not values.mean_is(math.nan)


@pytest.mark.parametrize(
    "row",
    [
        {"acc": 1},
        {"acc,none": 1},
        {"metrics": {"acc": 1}},
        {"metrics": {"acc,none": 1}},
        {"metrics": ["acc"], "acc": 1},
        {"filter": "none", "acc": 1},
    ],
)
def test_a_value_may_stand_in_a_few_places(tmp_path: Path, row: dict[str, Any]) -> None:
    assert read(tmp_path, [{"doc_id": 7, **row}]) == {7: 1.0}


def test_each_filter_has_rows_of_its_own(tmp_path: Path) -> None:
    rows = [{"doc_id": n, "filter": f, "acc": v} for f, v in (("none", 1), ("strict", 0)) for n in range(2)]
    assert read(tmp_path, rows) == {0: 1.0, 1: 1.0}
    assert read(tmp_path, rows, MetricKey("acc", "strict")) == {0: 0.0, 1: 0.0}


def test_values_of_one_sample_are_averaged(tmp_path: Path) -> None:
    rows = [{"doc_id": n % 2, "acc": v} for n, v in enumerate([1, 0, 0, 0, 1, 1])]
    assert read(tmp_path, rows) == {0: pytest.approx(2 / 3), 1: pytest.approx(1 / 3)}


def test_rows_that_can_not_be_understood_are_passed_over(tmp_path: Path) -> None:
    good = {"doc_id": 3, "acc": 1}
    rows = ["no json", "[1]", "", "[" * 100_000, '{"doc_id": 1, "acc"', {"acc": 1}, {"doc_id": None, "acc": 1}, {"doc_id": []}]
    assert read(tmp_path, [*rows, {"doc_id": 4, "filter": ["x"], "acc": 1}, good]) == {3: 1.0}


@given(st.lists(st.one_of(st.text(), st.integers(), st.floats(allow_nan=False)), max_size=30))
def test_any_id_is_an_id(tmp_path_factory: pytest.TempPathFactory, ids: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("ids")
    distinct = {json.dumps(sample_id) for sample_id in ids}
    assert len(read(folder, [{"doc_id": sample_id, "acc": 1} for sample_id in ids])) == len(distinct)


def test_without_a_doc_id_the_id_counts(tmp_path: Path) -> None:
    rows = [{"id": 3, "acc": 1}, {"doc_id": 4, "id": 3, "acc": 0}, {"doc_id": None, "id": 5, "acc": 0}]
    assert read(tmp_path, rows) == {3: 1.0, 4: 0.0, 5: 0.0}


def test_an_empty_file_has_no_values(tmp_path: Path) -> None:
    assert read(tmp_path, []) == {}


def test_memory_holds_the_values_and_not_the_rows(tmp_path: Path) -> None:
    line = json.dumps({"acc": 1, "doc": "x" * 2000})
    with (tmp_path / "s.jsonl").open("w") as file:
        file.writelines(f'{{"doc_id": {number}, {line[1:]}\n' for number in range(20_000))  # 40 MB
    tracemalloc.start()
    try:
        found = read_file(tmp_path / "s.jsonl")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found.ids) == 20_000
    assert peak < 4 * 1024 * 1024


# Pairing.


def samples(**values: float) -> SampleValues:
    return SampleValues(np.array([ord(name) for name in values]), np.array(list(values.values())), nothing_said(len(values)))


def test_hardly_any_two_documents_have_one_code() -> None:
    codes = {sample_values._code(f"hash {number}") for number in range(100_000)}
    assert len(codes) > 99_980, "others would be taken for the same"


def test_samples_are_paired_by_id_and_the_rest_is_counted() -> None:
    pairs = pair(samples(a=1, b=0, c=0.5), samples(b=1, c=0.5, d=0, e=0))
    assert (pairs.count, pairs.unpaired_count) == (2, 3)
    assert pairs.differences.tolist() == [1, 0]
    assert (pairs.gains, pairs.losses) == (1, 0)
    assert not pairs.are_zero_or_one()
    assert pair(samples(a=1, b=0), samples(a=0, b=0)).are_zero_or_one()


def documents(folder: Path, *hashes: str | None) -> SampleValues:
    folder.mkdir()
    rows = ({"doc_id": number, "acc": 1} | ({"doc_hash": text} if text else {}) for number, text in enumerate(hashes))
    (folder / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_file(folder / "s.jsonl")


def test_samples_of_other_documents_are_no_pairs(tmp_path: Path) -> None:
    pairs = pair(documents(tmp_path / "a", "x", "y", "z", None), documents(tmp_path / "b", "x", "Y", None, "w"))
    assert (pairs.count, pairs.other_document_count, pairs.unpaired_count) == (3, 1, 2)


def expecting(folder: Path, *rows: dict[str, Any]) -> SampleValues:
    folder.mkdir()
    (folder / "s.jsonl").write_text("".join(json.dumps({"doc_id": n, "acc": 1, **row}) + "\n" for n, row in enumerate(rows)))
    return read_file(folder / "s.jsonl")


@pytest.mark.parametrize("of_lmms_eval", [{}, {"doc_hash": hashlib.sha256(b"null").hexdigest()}])
def test_without_a_hash_documents_are_told_apart_by_the_answer_that_is_expected(
    of_lmms_eval: dict[str, Any], tmp_path: Path
) -> None:
    ours = expecting(tmp_path / "a", *({"target": text, **of_lmms_eval} for text in ("x", "y", ["z"], "", 5)))
    theirs = expecting(tmp_path / "b", *({"target": text, **of_lmms_eval} for text in ("x", "Y", ["z"], "w", 6)))
    pairs = pair(ours, theirs)
    assert (pairs.count, pairs.other_document_count) == (3, 2)


def asking(**other: str) -> list[dict[str, Any]]:
    """Rows as lm-eval's, of which the last says something else or, with an empty text, does not say it."""
    rows = [{name: f"{name} {n}" for name in ("doc_hash", "target_hash", "target", "prompt_hash")} for n in range(3)]
    return [*rows[:2], {name: text for name, text in {**rows[2], **other}.items() if text}]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({}, (3, 0, 0)),
        ({"doc_hash": "other"}, (2, 1, 0)),
        ({"target_hash": "other"}, (2, 1, 0)),
        ({"target": "other"}, (2, 1, 0)),
        ({"prompt_hash": "other"}, (3, 0, 1)),
        ({"doc_hash": "other", "prompt_hash": "other"}, (2, 1, 0)),
        ({"doc_hash": ""}, (3, 0, 0)),
        ({"target_hash": "", "prompt_hash": ""}, (3, 0, 0)),
        ({"target_hash": "", "doc_hash": "other"}, (2, 1, 0)),
        ({"doc_hash": "", "target": "other"}, (2, 1, 0)),
    ],
)
def test_a_pair_is_of_one_question_by_all_that_both_say_of_it(
    other: dict[str, str], expected: tuple[int, int, int], tmp_path: Path
) -> None:
    pairs = pair(expecting(tmp_path / "a", *asking()), expecting(tmp_path / "b", *asking(**other)))
    assert (pairs.count, pairs.other_document_count, pairs.other_prompt_count) == expected


def test_an_id_is_the_same_as_text(tmp_path: Path) -> None:
    ids = [7, -7, 0, 10**17]
    ours = expecting(tmp_path / "a", *({"doc_id": number} for number in ids))
    theirs = expecting(tmp_path / "b", *({"doc_id": text} for text in (*map(str, ids), "07", "+7", "7.0", "-0", "\u0667")))
    assert (pair(ours, theirs).count, len(theirs.ids)) == (4, 9)


def test_a_hash_that_all_documents_share_says_nothing(tmp_path: Path) -> None:
    pairs = pair(documents(tmp_path / "a", "same", "same"), documents(tmp_path / "b", "other", "other"))
    assert (pairs.count, pairs.other_document_count) == (2, 0)


def test_nothing_pairs_with_nothing() -> None:
    assert (pair(NO_VALUES, samples(a=1)).count, pair(NO_VALUES, NO_VALUES).unpaired_count) == (0, 0)


@pytest.mark.parametrize(("value", "is_mean"), [(0.25, True), (0.25004, True), (0.26, False), (25.0, False), (math.inf, False)])
def test_a_value_that_is_not_the_mean_is_seen(value: float, is_mean: bool) -> None:
    assert samples(a=1, b=0, c=0, d=0).mean_is(value) == is_mean
