"""Which samples are meant, and what is said if there are none."""

import pytest

from evalrpc.errors import FieldViolation, InvalidRequestError, SamplesNotFoundError
from evalrpc.reading.sample_pages import samples_file
from evalrpc.v1.jobs_pb2 import JobInfo
from evalrpc.v1.results_pb2 import ModelResult


def job(**tasks_by_model: list[str]) -> JobInfo:
    results = {
        model: ModelResult(samples=[f"/out/{model}/20260214_103045_samples_{task}.jsonl" for task in tasks])
        for model, tasks in tasks_by_model.items()
    }
    return JobInfo(job_id="j", results=results)


def test_the_only_model_and_the_only_task_need_no_name() -> None:
    one, several = job(m=["mme"]), job(m=["mme", "t"], n=["mme"])
    assert samples_file(one, one.results, "", "") == "/out/m/20260214_103045_samples_mme.jsonl"
    assert samples_file(several, several.results, "m", "t").endswith("/m/20260214_103045_samples_t.jsonl")


@pytest.mark.parametrize(
    ("of", "model", "task", "message"),
    [
        (job(), "", "", "job j has no samples"),
        (job(m=[]), "", "", "job j has no samples"),
        (job(m=["a", "b"]), "", "c", "job j has no samples of the task 'c'; it has: a, b"),
        (job(m=["a"]), "x", "", "job j has no samples of the model 'x'; it has: m"),
        (job(m=[]), "", "c", "job j has no samples"),
    ],
    ids=range(5),
)
def test_what_there_is_not_is_said_with_what_there_is(of: JobInfo, model: str, task: str, message: str) -> None:
    with pytest.raises(SamplesNotFoundError) as error:
        samples_file(of, of.results, model, task)
    assert error.value.message == message


@pytest.mark.parametrize(
    ("of", "task", "field", "problem"),
    [
        (job(m=["a", "b"]), "", "task", "is required, since job j has samples of several tasks: a, b"),
        (job(m=["a"], n=["a"]), "a", "model", "is required, since job j has samples of several models: m, n"),
    ],
    ids=range(2),
)
def test_one_of_several_is_required(of: JobInfo, task: str, field: str, problem: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        samples_file(of, of.results, "", task)
    assert error.value.violations == (FieldViolation(field, problem),)
