"""Whatever a program prints or leaves, its progress and results can be sent and written as JSON."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from harness_cases import run_of
from hypothesis import given
from hypothesis import strategies as st

from evalrpc.config import HarnessSettings, Settings
from evalrpc.errors import RunFailedError
from evalrpc.harnesses.base import Exit, Harness
from evalrpc.harnesses.progress_bars import read_bar
from evalrpc.harnesses.registry import build_harnesses
from evalrpc.protobuf.bounds import MAX_COUNT, MAX_SECONDS
from evalrpc.results.layout import read_results
from evalrpc.results.metrics import model_result
from evalrpc.testing.recorded_runs import request_of
from evalrpc.v1.jobs_pb2 import Progress

KINDS = ("lmms-eval", "lm-eval", "inspect-ai", "command")
HARNESSES = list(
    build_harnesses(
        Settings(harnesses={kind: HarnessSettings(kind, kind, command=("program",), python="/none/python") for kind in KINDS})
    ).values()
)

NUMBERS = st.sampled_from(("0", "1", "7", "100", "9" * 15, "9" * 16, "9" * 20, "1" + "0" * 400, "", "?", "1.5", "٣", "1e400"))
LINES = st.one_of(
    st.builds("Model Responding: {}%|██ | {}/{} [{}<{}:{}:{}, {}it/s]".format, *[NUMBERS] * 8),
    st.builds("Running generate_until requests: {}%|█| {}/{} [{}:{}<{}:{}, {}s/it]".format, *[NUMBERS] * 8),
    st.builds("Responding: {}/{} ({}%) | {} it/s | ETA {}h{}m{}s".format, *[NUMBERS] * 7),
    st.builds("Steps: {}/{} {}% | Samples: {}/ {} | accuracy: 1".format, *[NUMBERS] * 5),
    st.builds("tiny ({} x {} samples): m".format, *[NUMBERS] * 2),
    st.sampled_from(("total time: 0:00:01", "Running loglikelihood requests", "Building contexts for t", "Saving results")),
    st.text(),
)


@pytest.mark.parametrize("harness", HARNESSES, ids=lambda harness: harness.kind)
@given(lines=st.lists(LINES, max_size=8))
def test_any_line_gives_progress_that_can_be_sent_and_written_as_json(harness: Harness, lines: list[str]) -> None:
    progress = Progress()
    for line in lines:
        harness.read_progress(line, progress)
        assert Progress.FromString(progress.SerializeToString()) == progress
        assert json_format.MessageToJson(progress)
        assert 0 <= progress.done <= progress.total <= MAX_COUNT
        assert 0 <= progress.time_left.seconds <= MAX_SECONDS
        assert math.isfinite(progress.rate_per_second)


@pytest.mark.parametrize("harness", HARNESSES, ids=lambda harness: harness.kind)
def test_bars_without_end_add_up_to_no_more_than_a_field_holds(harness: Harness) -> None:
    progress = Progress(phase=Progress.PHASE_EVALUATING, done=MAX_COUNT - 5, total=MAX_COUNT - 5)
    for line in ("Responding: 0/9", "Responding: 9/9", "Running x requests: 3/9", "tiny (9 samples): m", "3/9", "9/9"):
        harness.read_progress(line, progress)
    assert MAX_COUNT - 5 <= progress.done <= progress.total <= MAX_COUNT


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ("00:01", 1),
        ("1:02:03", 3723),
        ("100:00:00", 360_000),
        ("?", None),
        (":", None),
        ("1:2:3:4", None),
        ("99999999999999:00:00", None),
        (f"{'9' * 400}:00", None),
    ],
)
def test_an_estimate_longer_than_any_run_is_unknown(left: str, expected: int | None) -> None:
    bar = read_bar(f"Responding:  20%|██ | 4/20 [00:00<{left}, 20.73it/s]")
    assert bar is not None
    assert (bar.done, bar.total, bar.seconds_left) == (4, 20, expected)


@pytest.mark.parametrize(
    ("left", "expected"), [("1h02m", 3720), ("2m03s", 123), ("0s", 0), ("12345678901234h", None), ("1d2h", None), ("5", None)]
)
def test_so_is_one_in_words(left: str, expected: int | None) -> None:
    bar = read_bar(f"Responding: 4/20 (20.0%) | 3.5 it/s | ETA {left}")
    assert bar is not None
    assert bar.seconds_left == expected


@pytest.mark.parametrize(
    ("rate", "expected"), [("20.73it/s", 20.73), ("2s/it", 0.5), ("9" * 400 + "it/s", None), ("1.2.3it/s", None)]
)
def test_a_rate_that_is_not_finite_is_unknown(rate: str, expected: float | None) -> None:
    bar = read_bar(f"Responding:  20%|██ | 4/20 [00:00<00:01, {rate}]")
    assert bar is not None
    assert bar.rate_per_second == expected


def test_digits_of_other_scripts_are_no_bar() -> None:
    assert read_bar("Responding: ٣/٤") is None


@pytest.mark.parametrize("digits", [3, 4, 400, 5000])
def test_a_signal_of_many_digits_explains_nothing_and_breaks_nothing(digits: int) -> None:
    harness = HARNESSES[-1]
    lines = ["Root Cause (first observed failure):", f"  traceback : Signal {'9' * digits} (SIGX) received by PID 1"]
    with pytest.raises(RunFailedError, match="signal 999" if digits == 3 else "exited with code 1"):
        harness.read_results(run_of(request_of(model="m", tasks=["t"])), Exit(code=1), lines)


def test_a_failure_in_text_that_is_no_unicode_is_reported(tmp_path: Path) -> None:
    log = {"status": "\ud800", "eval": {"task": "t"}, "results": {}}
    (tmp_path / "2026-02-14T10-30-45-00-00_t_x.json").write_text(json.dumps(log))
    inspect = next(harness for harness in HARNESSES if harness.kind == "inspect-ai")
    with pytest.raises(RunFailedError) as caught:
        inspect.read_results(run_of(request_of(model="m", tasks=["t"]), tmp_path), Exit(code=0), [])
    assert caught.value.job_error.message == "inspect-ai left task t with the status ?"


ODD_NUMBERS = st.sampled_from(
    (0, -1, 0.5, 10**18, 2**63 - 1, 2**63, 10**30, 10**400, 1e300, math.inf, -math.inf, math.nan, "9" * 5000)
)
KEYS = st.sampled_from(("acc,none", "acc_stderr,none", "sample_len", "sample_count", "other", "alias"))
ROWS = st.dictionaries(KEYS, ODD_NUMBERS | st.dictionaries(KEYS, ODD_NUMBERS), max_size=5)
DOCUMENTS = st.fixed_dictionaries(
    {
        "results": st.dictionaries(st.sampled_from("tu"), ROWS),
        "n-samples": st.dictionaries(
            st.sampled_from("tu"), st.dictionaries(st.sampled_from(("original", "effective")), ODD_NUMBERS)
        ),
        "n-shot": st.dictionaries(st.sampled_from("tu"), ODD_NUMBERS),
        "versions": st.dictionaries(st.sampled_from("tu"), ODD_NUMBERS),
        "task_hashes": st.dictionaries(st.sampled_from("tu"), ODD_NUMBERS),
        "total_evaluation_time_seconds": ODD_NUMBERS | st.sampled_from(("1e400", "nan", "-1", "9" * 400)),
        "x_version": ODD_NUMBERS,
        "date": ODD_NUMBERS,
    }
)


@given(document=DOCUMENTS)
def test_any_numbers_in_a_document_give_results_that_can_be_written_as_json(document: dict[str, Any]) -> None:
    assert json_format.MessageToJson(model_result(document))


@pytest.mark.parametrize("digits", [400, 5000])
def test_an_integer_of_many_digits_fails_no_good_run(digits: int, tmp_path: Path) -> None:
    text = json.dumps({"results": {"t": {"acc": 0.5, "odd": 0}}}).replace('"odd": 0', f'"odd": {"9" * digits}')
    (tmp_path / "20260214_103045_results.json").write_text(text)
    result = read_results(tmp_path, "m")["m"]
    assert [(metric.metric, metric.value) for metric in result.metrics] == [("acc", 0.5)]
