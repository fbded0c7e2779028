"""How many answers failed or are empty, in what lm-eval and lmms-eval wrote, and no sane program would; of any size."""

import json
import math
import re
import tracemalloc
from pathlib import Path

import pytest
from harness_cases import DATA

from evalrpc.errors import RunFailedError
from evalrpc.harnesses import sample_answers
from evalrpc.harnesses.bad_answers import NONE_BAD, BadAnswers, require_answers
from evalrpc.harnesses.sample_answers import CHUNK_BYTES, FAILED_ANSWER_MARK, AnswersOfRun, reason_in_log
from evalrpc.results.layout import read_results
from evalrpc.v1.jobs_pb2 import EvaluateRequest

CASES = sorted(case.name for case in (DATA / "lmms_eval").iterdir() if (case / "output").is_dir())
WHY = "Error code: 500 - stub failure"
NO_TEXT = 'can only concatenate str (not "NoneType") to str'
BAD = f"[LMMS_EVAL_REQUEST_FAILED after 1 retries] {WHY}"


def real(case: str) -> list[BadAnswers]:
    """What is wrong with the answers to each task of a real run."""
    output = DATA / "lmms_eval" / case / "output"
    return list(AnswersOfRun(output).by_task(read_results(output, "dummy")).values())


def count(path: str) -> BadAnswers:
    return AnswersOfRun(Path(path).parent).count(path)


def samples_file(folder: Path, *samples: object, name: str = "s.jsonl") -> str:
    path = folder / name
    path.write_text("".join(f"{sample if isinstance(sample, str) else json.dumps(sample)}\n" for sample in samples))
    return str(path)


def test_a_real_run_in_which_all_answers_failed_is_seen() -> None:
    (found,) = real("silent_api_500_results_written")
    assert found.failed == found.total > 0
    assert found.first == WHY


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("silent")])
def test_a_real_run_with_answers_is_good(case: str) -> None:
    assert set(real(case)) == {NONE_BAD}


@pytest.mark.parametrize(
    ("samples", "failed", "empty", "total"),
    [
        ([{"filtered_resps": BAD}, {"filtered_resps": "A"}], 1, 0, 2),
        ([{"filtered_resps": BAD, "resps": ["fine"]}], 0, 0, 1),
        ([{"resps": [[BAD, "fine"]]}, {"resps": [["fine"], [BAD]]}], 2, 0, 4),
        ([{"filtered_resps": "A"}] * 500 + [{"filtered_resps": BAD}], 1, 0, 501),
        ([{"filtered_resps": "[invalid]", "resps": [BAD]}], 1, 0, 1),
        ([{"filtered_resps": BAD}] * 3, 3, 0, 3),
        (["{", {"resps": [[BAD], [BAD]]}, "[]", "null", {"doc_id": 1}, {"filtered_resps": None}, "[" * 200_000], 2, 0, 2),
        ([{"filtered_resps": ""}] * 19 + [{"filtered_resps": "A"}], 0, 19, 20),
        ([{"resps": [["A"]], "filtered_resps": [""]}, {"resps": [[" \n"]], "filtered_resps": ["x"]}], 0, 1, 2),
        ([{"resps": [["A \\", '"'], ["B", ""]]}, {"resps": []}, {"resps": [[None], [""]]}, {"resps": BAD}], 1, 4, 8),
        ([{"resps": [[[-0.5, False]], [[-1.5, True]]]}, {"resps": [["-0.5", "False"]], "filter": "none"}], 0, 0, 0),
        ([{"resps": [[""]], "filter": name} for name in ("strict", "loose")], 0, 1, 1),
    ],
)
def test_every_bad_answer_counts(samples: list[object], failed: int, empty: int, total: int, tmp_path: Path) -> None:
    found = count(samples_file(tmp_path, *samples))
    assert (found.failed, found.empty) == (failed, empty)
    assert found.total == total or not found.count  # what has no bad answer may only be searched
    assert found.first == (WHY if failed else "")


@pytest.mark.parametrize(
    ("answers", "failed", "total"),
    [
        ([["nan", "False"], ["nan", "False"]], 2, 2),  # as lm-eval writes them
        ([[math.nan, False], [-0.5, True]], 1, 2),
        ([[["nan", "False"]], [["-0.5", "True"]]], 1, 2),
        ([math.nan, False], 1, 1),  # as lmms-eval writes a single one
        ([[math.nan]], 1, 1),  # of a whole text
        ([["nan"], ["NaN"]], 0, 2),  # texts that a model has said
        ([["-inf", "False"], ["-0.0", "True"], [0.0, True], ["0.0", "True"]], 0, 4),
        ([["0", "True"], ["0", "True"]], 2, 2),  # of a server that sends none
        ([[["-0.5", "True"]], [["-2.5", "False"]], [["0", "False"]], [["nan", "False"]]], 2, 4),
        ([["0"], ["0", "1"]], 0, 3),
    ],
)
def test_what_is_no_log_probability_is_no_answer(answers: object, failed: int, total: int, tmp_path: Path) -> None:
    found = count(samples_file(tmp_path, {"resps": answers, "acc": 1.0}))
    assert (found.failed, found.empty) == (failed, 0)
    assert found.total == total or not found.count
    assert found.first.startswith("no log-probability" if failed else "")


@pytest.mark.parametrize(
    ("targets", "answers", "empty"),
    [
        ("AB", ["None", "A"], 1),
        ("AB", [["None"], [["A"]]], 1),
        (["None", "None"], ["None", "None"], 2),  # of a task that has no targets
        (["A", "None"], ["None", "None"], 0),
        ("AB", ["none", "None."], 0),
    ],
)
def test_none_is_an_answer_where_a_task_expects_it(
    targets: list[str], answers: list[object], empty: int, tmp_path: Path
) -> None:
    rows = [
        {"target": target, "filtered_resps": answer, "token_counts": [None]}
        for target, answer in zip(targets, answers, strict=True)
    ]
    found = count(samples_file(tmp_path, *rows))
    assert (found.failed, found.empty) == (0, empty)
    assert found.first.startswith("the server sent no content" if empty else "")
    others = [{key: value for key, value in row.items() if key != "token_counts"} for row in rows]
    assert count(samples_file(tmp_path, *others)).empty == 0, "of another harness"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (BAD, WHY),
        (FAILED_ANSWER_MARK, FAILED_ANSWER_MARK),
        ("[ERROR] Empty prompt: doc_id=3", "Empty prompt: doc_id=3"),
        ("[GENERATION_FAILED] CUDA error", "CUDA error"),
        ("Video /data/a b.mp4 can not load, check the source", "Video /data/a b.mp4 can not load, check the source"),
        ("Video a.mp4 generate failed, check the source", "Video a.mp4 generate failed, check the source"),
        ("[LMMS_EVAL_BUDGET_EXCEEDED]", "[LMMS_EVAL_BUDGET_EXCEEDED]"),
        ("[SAFETY_BLOCKED:finish_reason=SAFETY]", "[SAFETY_BLOCKED:finish_reason=SAFETY]"),
        ("The tag is [SAFETY_BLOCKED:x]", None),
        ("ERROR: the lamp shows [ERROR] 5", None),
        ("[ERROR] conditioning video not found (doc key 'a'): 'b'", "conditioning video not found (doc key 'a'): 'b'"),
        ("[ERROR] Unknown", "Unknown"),
        ("[ERROR]", None),
        ("[ERROR] The disk is full.", None),
        ("The log says [GENERATION_FAILED] x", None),
        ("Video a.mp4 can not load, check the source or the cable", None),
        (f"Error: {NO_TEXT}", NO_TEXT),
        (NO_TEXT, NO_TEXT),
        (f"Python says: {NO_TEXT}", None),
    ],
)
def test_what_any_model_of_lmms_eval_says_instead_of_an_answer_is_none(answer: str, why: str | None, tmp_path: Path) -> None:
    found = count(samples_file(tmp_path, {"filtered_resps": "A"}, {"resps": [[answer]]}))
    assert (found.failed, found.first) == ((0, "") if why is None else (1, why))


@pytest.mark.parametrize(
    ("answer", "empty"),
    [
        ({"text": "", "images": []}, 1),
        ({"text": "", "videos": ["a.mp4"]}, 0),
        ({"text": "a lamp", "images": []}, 0),
        ({"masks": [], "scores": []}, 0),
    ],
)
def test_an_answer_of_text_and_images_is_empty_without_either(answer: dict[str, object], empty: int, tmp_path: Path) -> None:
    text = json.dumps(answer)
    assert count(samples_file(tmp_path, {"filtered_resps": "A"}, {"resps": [[text]]}, {"resps": [[text + "]"]]})).empty == empty


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (
            "02:30:27 | ERROR    | lmms_eval.models.simple.llava_hf:generate_until:376 - Error CUDA error in generating",
            "Error CUDA error in generating",
        ),
        (
            "\x1b[31m\x1b[1mERROR   \x1b[0m | \x1b[36mlmms_eval.models.a\x1b[0m:\x1b[36mf\x1b[0m:9 - \x1b[31mError: no\x1b[0m",
            "Error: no",
        ),
        (
            "API: 5%|2026-11-23:02:20:48 WARNING  [models.openai_completions:235] Could not parse generations: 'choices'",
            "Could not parse generations: 'choices'",
        ),
        (
            "02:20:48 WARNING  [lm_eval.models.api_models:796] API returned null content. Content filled with `X = `.",
            "API returned null content. Content filled with `X = `.",
        ),
        ("2026-11-23 02:30:27 | ERROR    | lmms_eval.__main__:cli_evaluate:614 - Error during evaluation: no", ""),
        ("2026-11-23 02:30:27 | INFO     | lmms_eval.models.simple.llava_hf:generate_until:376 - loaded", ""),
    ],
)
def test_the_log_may_say_why_answers_are_empty(line: str, why: str, tmp_path: Path) -> None:
    assert reason_in_log(["first", line, "last"]) == why
    path = samples_file(tmp_path, {"filtered_resps": "A"}, {"resps": [[""]]})
    assert AnswersOfRun(tmp_path, why).count(path) == BadAnswers(0, 1, 2, why)
    all_empty = {"answers to task t": BadAnswers(0, 2, 2, why)}
    if why:
        with pytest.raises(RunFailedError, match=f"2 of 2 answers to task t are empty: {re.escape(why)}") as caught:
            require_answers(all_empty, EvaluateRequest())
        assert caught.value.job_error.reason == "ALL_REQUESTS_FAILED"
    else:
        assert require_answers(all_empty, EvaluateRequest()) == ["2 of 2 answers to task t are empty"]


def test_the_answers_to_each_task_count_by_themselves(tmp_path: Path) -> None:
    (tmp_path / "20260214_103045_results.json").write_text(json.dumps({"results": {"a": {"acc": 1}, "b": {"acc": 1}}}))
    samples_file(tmp_path, *[{"filtered_resps": "A"}] * 7, name="20260214_103045_samples_a.jsonl")
    samples_file(tmp_path, {"filtered_resps": BAD}, name="20260214_103045_samples_b.jsonl")
    found = AnswersOfRun(tmp_path).by_task(read_results(tmp_path, "m"))
    assert found == {"answers to task a": NONE_BAD, "answers to task b": BadAnswers(1, 0, 1, WHY)}


def test_samples_that_are_too_large_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = samples_file(tmp_path, {"filtered_resps": BAD})
    monkeypatch.setattr(sample_answers, "MAX_SEARCHED_BYTES", Path(path).stat().st_size)
    answers = AnswersOfRun(tmp_path)
    assert [answers.count(path).failed, answers.count(path).failed] == [1, 0]
    assert answers.unread == 1


def test_samples_that_cannot_be_read_make_results_invalid(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match="a samples file can't be read: No such file or directory"):
        count(str(tmp_path / "none"))


@pytest.mark.parametrize(
    "content", ["", "\n\n", "\0", "{}\n{}", "x" * 20_000_000], ids=["empty", "blank", "null", "no end", "long"]
)
def test_samples_without_any_sample_are_no_failed_answers(content: str, tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(content)
    assert count(str(tmp_path / "s.jsonl")) == NONE_BAD


@pytest.mark.parametrize("place", [0, 1, CHUNK_BYTES - 10, CHUNK_BYTES, 2 * CHUNK_BYTES - 1])
def test_a_failed_answer_is_found_wherever_it_stands(place: int, tmp_path: Path) -> None:
    before = json.dumps({"filtered_resps": "A"})
    path = samples_file(tmp_path, before.ljust(max(len(before), place)), {"filtered_resps": FAILED_ANSWER_MARK + "] x"})
    assert count(path) == BadAnswers(1, 0, 2, "x")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = samples_file(tmp_path, *[{"filtered_resps": BAD}] * 200_000)
    tracemalloc.start()
    assert count(path) == BadAnswers(200_000, 0, 200_000, WHY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * CHUNK_BYTES


@pytest.mark.parametrize(("ratio", "is_refused"), [(None, False), (0.95, False), (0.94, True), (0.0, True), (1.0, False)])
@pytest.mark.parametrize(
    ("found", "warning"),
    [
        (BadAnswers(19, 0, 20, "no route"), "19 of 20 answers failed: no route"),
        (BadAnswers(0, 19, 20), "19 of 20 answers are empty"),
        (BadAnswers(9, 10, 20, "no route"), "9 of 20 answers failed, and 10 more are empty: no route"),
    ],
)
def test_a_request_may_bound_the_share_of_bad_answers(
    found: BadAnswers, warning: str, ratio: float | None, is_refused: bool
) -> None:
    request = EvaluateRequest(max_bad_answer_ratio=ratio)
    if not is_refused:
        assert require_answers({"answers": found}, request) == [warning]
        return
    with pytest.raises(RunFailedError) as caught:
        require_answers({"answers": found}, request)
    assert caught.value.job_error.reason == "TOO_MANY_BAD_ANSWERS"


@pytest.mark.parametrize("found", [BadAnswers(3, 0, 3), BadAnswers(1, 2, 3)])
def test_without_any_good_answer_a_run_fails_whatever_the_request_allows(found: BadAnswers) -> None:
    with pytest.raises(RunFailedError) as caught:
        require_answers({"answers": found}, EvaluateRequest(max_bad_answer_ratio=1))
    assert caught.value.job_error.reason == "ALL_REQUESTS_FAILED"
    assert caught.value.message.endswith(": the harness does not say why")


def test_empty_answers_may_be_all_that_a_model_says() -> None:
    assert require_answers({"answers": BadAnswers(0, 20, 20)}, EvaluateRequest()) == ["20 of 20 answers are empty"]


def test_where_nothing_is_bad_there_is_nothing_to_say() -> None:
    assert require_answers({"answers": BadAnswers(0, 0, 20)}, EvaluateRequest(max_bad_answer_ratio=0)) == []
