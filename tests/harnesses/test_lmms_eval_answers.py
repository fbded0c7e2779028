"""Whether any answer was good, in what lmms-eval wrote and in what no sane program would write, in files of any size."""

import json
import tracemalloc
from pathlib import Path

import pytest
from harness_cases import DATA

from evalrpc.errors import RunFailedError
from evalrpc.harnesses.lmms_eval.answers import (
    FAILED_ANSWER_MARK,
    MAX_WHOLE_BYTES,
    STRETCH_SAMPLES,
    STRETCHES,
    FailedAnswers,
    failed_answers,
)
from evalrpc.results.layout import read_results

CASES = sorted(case.name for case in (DATA / "lmms_eval").iterdir() if (case / "output").is_dir())
BAD = "[LMMS_EVAL_REQUEST_FAILED after 1 retries] Error code: 500 - stub failure"


def real(case: str) -> list[str]:
    """The samples files of a real run."""
    results = read_results(DATA / "lmms_eval" / case / "output", "dummy")
    return [path for result in results.values() for path in result.samples]


def samples_file(folder: Path, *samples: object, name: str = "s.jsonl") -> str:
    path = folder / name
    path.write_text("".join(f"{sample if isinstance(sample, str) else json.dumps(sample)}\n" for sample in samples))
    return str(path)


def test_a_real_run_in_which_all_answers_failed_is_seen() -> None:
    found = failed_answers(real("silent_api_500_results_written"))
    assert found is not None
    assert (found.first, found.is_all) == (BAD, True)


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("silent")])
def test_a_real_run_with_answers_is_good(case: str) -> None:
    assert real(case)
    assert failed_answers(real(case)) is None


@pytest.mark.parametrize(
    "samples",
    [
        [{"filtered_resps": BAD}, {"filtered_resps": "A"}],
        [{"filtered_resps": BAD, "resps": ["fine"]}],
        [{"resps": [[BAD, "fine"]]}],
        [],
        ["{", "[]", "null", {"doc_id": 1}, {"filtered_resps": None}],
        ["[" * 200_000],
    ],
)
def test_not_all_answers_failed(tmp_path: Path, samples: list[object]) -> None:
    assert failed_answers([samples_file(tmp_path, *samples)]) is None


@pytest.mark.parametrize(
    "samples",
    [[{"filtered_resps": BAD}] * 3, [{"filtered_resps": "[invalid]", "resps": [BAD]}], ["{", {"resps": [[BAD], [BAD]]}]],
)
def test_all_answers_failed(tmp_path: Path, samples: list[object]) -> None:
    path = samples_file(tmp_path, *samples)
    assert failed_answers([path]) == FailedAnswers(BAD, len(samples) - samples.count("{"), is_all=True)


def test_reading_stops_at_the_first_good_answer(tmp_path: Path) -> None:
    assert failed_answers([samples_file(tmp_path, {"filtered_resps": "A"}), str(tmp_path / "does not exist")]) is None


def test_samples_that_cannot_be_read_make_results_invalid(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match="a samples file can't be read: No such file or directory"):
        failed_answers([str(tmp_path / "none")])


@pytest.mark.parametrize(
    "content", ["", "\n\n", "\0", "{}\n{}", "x" * 20_000_000], ids=["empty", "blank", "null", "no end", "long"]
)
def test_samples_without_any_sample_are_no_failed_answers(content: str, tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(content)
    assert failed_answers([str(tmp_path / "s.jsonl")]) is None


@pytest.mark.parametrize("count", [20_000, 200_000])
def test_of_a_large_file_as_many_samples_are_looked_at_however_many_there_are(count: int, tmp_path: Path) -> None:
    path = samples_file(tmp_path, *[{"filtered_resps": BAD}] * count)
    small = samples_file(tmp_path, {"filtered_resps": BAD}, name="small.jsonl")
    tracemalloc.start()
    assert failed_answers([path, small]) == FailedAnswers(BAD, STRETCHES * STRETCH_SAMPLES + 1, is_all=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_of_a_large_file_every_stretch_is_looked_at(tmp_path: Path) -> None:
    length = 1000  # samples in a stretch
    bad = json.dumps({"filtered_resps": BAD})
    good = json.dumps({"filtered_resps": "A"}).ljust(len(bad))
    for stretch in (0, 1, STRETCHES // 2, STRETCHES - 1):
        samples = [bad] * (length * STRETCHES)
        samples[length * stretch : length * (stretch + 1)] = [good] * length
        assert failed_answers([samples_file(tmp_path, *samples)]) is None, f"stretch {stretch}"


@pytest.mark.parametrize("length", [MAX_WHOLE_BYTES // 40, MAX_WHOLE_BYTES // 16, MAX_WHOLE_BYTES // 8])
def test_of_a_few_long_samples_none_is_missed(length: int, tmp_path: Path) -> None:
    sample = {"filtered_resps": BAD, "input": "x" * length}
    for place in (0, 1, 24, 48, 49):
        samples = [sample] * 50
        samples[place] = {**sample, "filtered_resps": "A"}
        assert failed_answers([samples_file(tmp_path, *samples)]) is None, f"sample {place}"
    found = failed_answers([samples_file(tmp_path, *[sample] * 50)])
    assert found is not None
    assert found.sample_count == 50


def test_a_sample_that_begins_just_where_a_stretch_does_is_not_missed(tmp_path: Path) -> None:
    line = MAX_WHOLE_BYTES // 32  # exactly one line in every stretch
    row = json.dumps({"filtered_resps": FAILED_ANSWER_MARK})
    samples = [row.ljust(line - 1)] * STRETCHES
    found = failed_answers([samples_file(tmp_path, *samples)])
    assert found is not None
    assert (found.sample_count, found.is_all) == (STRETCHES, False)
