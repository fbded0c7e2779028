"""What the jobs of a suite are asked for: what all have in common, and what those of one harness have instead."""

from evalrpc.server.suite_submissions import SuiteJobs
from evalrpc.v1.jobs_pb2 import EvaluateRequest
from evalrpc.v1.suites_pb2 import SubmitSuiteRequest, Suite, SuiteEntry

SUITE = Suite(
    name="release",
    entries=[SuiteEntry(name=harness, request=EvaluateRequest(harness=harness, tasks=["t"])) for harness in ("toy", "other")],
)


def requests(of_toy: EvaluateRequest, of_all: EvaluateRequest) -> list[EvaluateRequest]:
    """Return what the jobs of the two harnesses are asked for."""
    call = SubmitSuiteRequest(suite="release", request=of_all, harness_requests={"toy": of_toy})
    return [submission.request for submission in SuiteJobs(SUITE, call).submissions]


def test_what_a_harness_has_replaces_what_all_have() -> None:
    of_all = EvaluateRequest(model="m", secrets=["A", "B"], served_model={"engine": "vllm", "num_gpus": 2})
    of_toy = EvaluateRequest(model="n", secrets=["C"], served_model={"engine": "sglang"})
    toy, other = requests(of_toy, of_all)
    assert (toy.model, list(toy.secrets), toy.served_model) == ("n", ["C"], of_toy.served_model)
    assert (other.model, list(other.secrets), other.served_model) == ("m", ["A", "B"], of_all.served_model)


def test_what_a_harness_leaves_out_stays_as_all_have_it() -> None:
    toy, _ = requests(EvaluateRequest(batch_size="4"), EvaluateRequest(model="m", secrets=["A"], batch_size="8"))
    assert (toy.model, list(toy.secrets), toy.batch_size, list(toy.tasks)) == ("m", ["A"], "4", ["t"])


def test_of_the_arguments_of_a_model_each_is_replaced_by_itself() -> None:
    toy, _ = requests(EvaluateRequest(model_args={"b": 2, "c": 2}), EvaluateRequest(model_args={"a": 1, "b": 1}))
    assert dict(toy.model_args) == {"a": 1, "b": 2, "c": 2}
