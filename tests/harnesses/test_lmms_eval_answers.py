"""How many answers failed, in what lmms-eval wrote and in what no sane program would write, in files of any size."""

import json
import tracemalloc
from pathlib import Path

import pytest
from harness_cases import DATA

from evalrpc.errors import RunFailedError
from evalrpc.harnesses.failed_answers import FailedAnswers, require_answers
from evalrpc.harnesses.lmms_eval.answers import CHUNK_BYTES, FAILED_ANSWER_MARK, failed_answers
from evalrpc.results.layout import read_results
from evalrpc.v1.jobs_pb2 import EvaluateRequest

CASES = sorted(case.name for case in (DATA / "lmms_eval").iterdir() if (case / "output").is_dir())
WHY = "Error code: 500 - stub failure"
BAD = f"[LMMS_EVAL_REQUEST_FAILED after 1 retries] {WHY}"
NONE_FAILED = FailedAnswers(0, 0, "")


def real(case: str) -> list[str]:
    """The samples files of a real run."""
    results = read_results(DATA / "lmms_eval" / case / "output", "dummy")
    return [path for result in results.values() for path in result.samples]


def samples_file(folder: Path, *samples: object, name: str = "s.jsonl") -> str:
    path = folder / name
    path.write_text("".join(f"{sample if isinstance(sample, str) else json.dumps(sample)}\n" for sample in samples))
    return str(path)


def test_a_real_run_in_which_all_answers_failed_is_seen() -> None:
    found = failed_answers(DATA, real("silent_api_500_results_written"))
    assert found.count == found.total > 0
    assert found.first == WHY


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("silent")])
def test_a_real_run_with_answers_is_good(case: str) -> None:
    assert real(case)
    assert failed_answers(DATA, real(case)) == NONE_FAILED


@pytest.mark.parametrize(
    ("samples", "count", "total"),
    [
        ([{"filtered_resps": BAD}, {"filtered_resps": "A"}], 1, 2),
        ([{"filtered_resps": BAD, "resps": ["fine"]}], 0, 1),
        ([{"resps": [[BAD, "fine"]]}, {"resps": [["fine"], [BAD]]}], 2, 4),
        ([{"filtered_resps": "A"}] * 500 + [{"filtered_resps": BAD}], 1, 501),
        ([{"filtered_resps": "[invalid]", "resps": [BAD]}], 1, 1),
        ([{"filtered_resps": BAD}] * 3, 3, 3),
        (["{", {"resps": [[BAD], [BAD]]}, "[]", "null", {"doc_id": 1}, {"filtered_resps": None}, "[" * 200_000], 2, 2),
    ],
)
def test_every_failed_answer_counts(samples: list[object], count: int, total: int, tmp_path: Path) -> None:
    assert failed_answers(tmp_path, [samples_file(tmp_path, *samples)]) == FailedAnswers(count, total, WHY if count else "")


def test_the_answers_of_all_files_count(tmp_path: Path) -> None:
    good = samples_file(tmp_path, *[{"filtered_resps": "A"}] * 7, name="good.jsonl")
    bad = samples_file(tmp_path, {"filtered_resps": BAD}, name="bad.jsonl")
    assert failed_answers(tmp_path, [good, bad]) == FailedAnswers(1, 8, WHY)


def test_samples_that_cannot_be_read_make_results_invalid(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match="a samples file can't be read: No such file or directory"):
        failed_answers(tmp_path, [str(tmp_path / "none")])


@pytest.mark.parametrize(
    "content", ["", "\n\n", "\0", "{}\n{}", "x" * 20_000_000], ids=["empty", "blank", "null", "no end", "long"]
)
def test_samples_without_any_sample_are_no_failed_answers(content: str, tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(content)
    assert failed_answers(tmp_path, [str(tmp_path / "s.jsonl")]) == NONE_FAILED


@pytest.mark.parametrize("place", [0, 1, CHUNK_BYTES - 10, CHUNK_BYTES, 2 * CHUNK_BYTES - 1])
def test_a_failed_answer_is_found_wherever_it_stands(place: int, tmp_path: Path) -> None:
    before = json.dumps({"filtered_resps": "A"})
    path = samples_file(tmp_path, before.ljust(max(len(before), place)), {"filtered_resps": FAILED_ANSWER_MARK + "] x"})
    assert failed_answers(tmp_path, [path]) == FailedAnswers(1, 2, "x")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = samples_file(tmp_path, *[{"filtered_resps": BAD}] * 200_000)
    tracemalloc.start()
    assert failed_answers(tmp_path, [path]) == FailedAnswers(200_000, 200_000, WHY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * CHUNK_BYTES


@pytest.mark.parametrize(("ratio", "is_refused"), [(None, False), (0.95, False), (0.94, True), (0.0, True), (1.0, False)])
def test_a_request_may_bound_the_share_of_failed_answers(ratio: float | None, is_refused: bool) -> None:
    request, found = EvaluateRequest(max_bad_answer_ratio=ratio), {"answers": FailedAnswers(19, 20, "no route")}
    if not is_refused:
        assert require_answers(found, request) == ["19 of 20 answers failed: no route"]
        return
    with pytest.raises(RunFailedError) as caught:
        require_answers(found, request)
    assert caught.value.job_error.reason == "TOO_MANY_BAD_ANSWERS"


def test_without_any_good_answer_a_run_fails_whatever_the_request_allows() -> None:
    with pytest.raises(RunFailedError) as caught:
        require_answers({"answers": FailedAnswers(3, 3, "")}, EvaluateRequest(max_bad_answer_ratio=1))
    assert caught.value.job_error.reason == "ALL_REQUESTS_FAILED"
    assert caught.value.message == "3 of 3 answers failed: the harness does not say why"


def test_where_nothing_failed_there_is_nothing_to_say() -> None:
    assert require_answers({"answers": FailedAnswers(0, 20, "")}, EvaluateRequest(max_bad_answer_ratio=0)) == []
