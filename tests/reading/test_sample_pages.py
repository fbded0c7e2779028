"""Which samples are meant, and what is said if there are none."""

import pytest

from evalrpc.errors import SamplesNotFoundError
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
    assert samples_file(job(m=["mme"]), "", "") == "/out/m/20260214_103045_samples_mme.jsonl"
    assert samples_file(job(m=["mme", "t"], n=["mme"]), "m", "t").endswith("/m/20260214_103045_samples_t.jsonl")


@pytest.mark.parametrize(
    ("of", "model", "task", "message"),
    [
        (job(), "", "", "job j has no samples"),
        (job(m=[]), "", "", "job j has no samples"),
        (job(m=["a", "b"]), "", "", "job j has samples of several tasks, so name one: a, b"),
        (job(m=["a"], n=["a"]), "", "a", "job j has samples of several models, so name one: m, n"),
        (job(m=["a", "b"]), "", "c", "job j has no samples of the task 'c'; it has: a, b"),
        (job(m=["a"]), "x", "", "job j has no samples of the model 'x'; it has: m"),
        (job(m=[]), "", "c", "job j has no samples"),
    ],
    ids=range(7),
)
def test_what_there_is_not_is_said_with_what_there_is(of: JobInfo, model: str, task: str, message: str) -> None:
    with pytest.raises(SamplesNotFoundError) as error:
        samples_file(of, model, task)
    assert error.value.message == message
