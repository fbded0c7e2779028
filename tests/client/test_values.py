"""Plain Python values as fields of the schema, and errors that name the argument and the key."""

import enum
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from evalrpc.client import core, values
from evalrpc.client.comparing import compare_request
from evalrpc.protobuf.structs import MAX_DEPTH
from evalrpc.v1.jobs_pb2 import GetJobRequest, JobFilter, JobInfo, ServedModel, SubmitJobRequest


class Size(enum.Enum):
    SMALL = "small"
    NUMBER = 7


class Level(enum.IntEnum):
    HIGH = 3


class Tensor:
    """Like a tensor of torch: it has `item` and `tolist`, but it is neither NumPy's nor small."""

    __module__ = "torch"

    def tolist(self) -> list[float]:
        raise AssertionError("nobody may fetch it from a GPU")


ID = UUID("7b0b8d5e-6f1e-4f0e-9d51-0d5fb3a1c001")

# Labels


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "x"),
        ("", ""),
        (500, "500"),
        (-(2**70), str(-(2**70))),
        (500.0, "500.0"),
        (0.1, "0.1"),
        (1 / 3, "0.3333333333333333"),
        (2e-6, "2e-06"),
        (True, "true"),
        (False, "false"),
        (Path("/ckpt/500"), "/ckpt/500"),
        (np.int64(500), "500"),
        (np.float64(500), "500.0"),
        (np.float32(0.1), "0.10000000149011612"),
        (np.bool_(True), "true"),
        (np.str_("x"), "x"),
        (np.array(5), "5"),
        (Size.SMALL, "small"),
        (Size.NUMBER, "7"),
        (Level.HIGH, "3"),
        (ID, str(ID)),
        (date(2026, 2, 14), "2026-02-14"),
        (datetime(2026, 2, 14, 10, 30, tzinfo=UTC), "2026-02-14T10:30:00+00:00"),
    ],
)
def test_a_label_becomes_text_without_loss(value: object, text: str) -> None:
    assert values.labels({"step": value}) == {"step": text}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"tag": None}, "labels['tag']: None can't be a label; leave it out"),
        ({"tag": ["a"]}, "labels['tag']: a list can't be a label; give text, a number or a boolean"),
        ({"tag": b"x"}, "labels['tag']: a bytes can't be a label; give text, a number or a boolean"),
        ({"tag": Tensor()}, "labels['tag']: a torch.Tensor can't be a label; give text, a number or a boolean"),
        ({"tag": np.array([1, 2])}, "labels['tag']: a list can't be a label; give text, a number or a boolean"),
        ({1: "x"}, "labels: the key 1 is an int; keys must be text"),
        ([("a", "b")], "labels must be a dict, not a list"),
        ({"tag": "\udc80"}, "labels['tag']: '\\udc80' has a character that UTF-8 can't express"),
    ],
)
def test_what_is_no_label_is_named(labels: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}$"):
        values.labels(labels)


def test_a_submission_takes_labels_as_people_write_them() -> None:
    request = core.evaluate_request("m", ["t"])

    assert core.submit_request(request, labels={"step": 500, "run": "x"}).labels == {"step": "500", "run": "x"}
    assert core.submit_request(request, labels=SubmitJobRequest(labels={"a": "b"}).labels).labels == {"a": "b"}
    assert core.submit_request(request, labels=None).labels == {}


# Arguments


@pytest.mark.parametrize(
    ("value", "json_value"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (2**53, 2**53),
        (0.5, 0.5),
        ("x", "x"),
        ((1, 2), [1, 2]),
        (range(3), [0, 1, 2]),
        ({"a": (1, {"b": Path("x")})}, {"a": [1, {"b": "x"}]}),
        (Path("/ckpt"), "/ckpt"),
        (np.int32(3), 3),
        (np.float64(0.5), 0.5),
        (np.bool_(False), False),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        ([np.float32(0.5)], [0.5]),
        (Size.SMALL, "small"),
        (Level.HIGH, 3),
        (ID, str(ID)),
        (date(2026, 2, 14), "2026-02-14"),
    ],
)
def test_an_argument_becomes_a_json_value(value: object, json_value: object) -> None:
    struct = values.arguments("model_args", {"key": value})

    assert struct is not None
    assert core.plain_row(struct) == {"key": json_value}
    again = values.arguments("model_args", struct)  # the Struct of another job
    assert again == struct


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"p": Tensor()}, "['p']: a torch.Tensor can't be sent; give text, a number, a boolean, None, a list or a dict"),
        ([1, {"q": object()}], "[1]['q']: an object can't be sent"),
        ({"s": {1, 2}}, "['s']: a set has no order; give a sorted list"),
        (b"x", ": a bytes can't be sent"),
        (timedelta(1), ": a datetime.timedelta can't be sent"),
        (2**53 + 1, ": 9007199254740993 is beyond 2**53, so it would lose digits; give it as text"),
        (-(2**64), "is beyond 2**53"),
        (float("nan"), ": nan is no finite number"),
        (np.float32("inf"), ": inf is no finite number"),
        (np.zeros(1001), ": an array of 1001 values is too large; at most 1000 can be sent"),
        ({1: "x"}, ": the key 1 is an int; keys must be text"),
        ("\ud800", ": '\\ud800' has a character that UTF-8 can't express"),
        (iter([1]), "can't be sent"),
        (np.longdouble(1), ": a numpy.longdouble can't be sent"),
    ],
)
def test_what_has_no_json_form_is_named_by_its_path(value: object, problem: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        values.arguments("model_args", {"vision": value})

    assert str(caught.value).startswith("model_args['vision']")
    assert problem in str(caught.value)


def test_a_value_that_contains_itself_is_refused() -> None:
    endless: list[object] = []
    endless.append(endless)

    with pytest.raises(ValueError, match="model_args is nested too deep"):
        values.arguments("model_args", {"key": endless})


def test_a_value_as_deep_as_a_server_takes_is_sent() -> None:
    value: object = 1
    for _ in range(4 * MAX_DEPTH):
        value = [value]

    assert values.arguments("model_args", {"key": value}) is not None


def test_arguments_may_be_text() -> None:
    request = core.evaluate_request("m", ["t"], "pretrained=a/b,n=2", gen_kwargs="do_sample=False,until=x=y")

    assert core.plain_row(request.model_args) == {"pretrained": "a/b", "n": 2}
    assert core.plain_row(request.gen_kwargs) == {"do_sample": False, "until": "x=y"}


# Every other argument


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 5}, "model must be text, not 5 (an int)"),
        ({"model": "\udc80"}, "model: '\\udc80' has a character that UTF-8 can't express"),
        ({"tasks": 5}, "tasks must be a list of texts, not 5 (an int)"),
        ({"tasks": None}, "tasks must be a list of texts, not None"),
        ({"tasks": ["a", 5]}, "tasks[1] must be text, not 5 (an int)"),
        ({"model_args": ["a=1"]}, "model_args must be a dict, or text such as 'a=1,b=x', not a list"),
        ({"model_args": "a"}, "model_args `a` is not of the form key=value"),
        ({"gen_kwargs": '{"a": '}, "gen_kwargs is no valid JSON"),
        ({"num_fewshot": "5"}, "num_fewshot must be a whole number of 32 bits, not '5' (a str)"),
        ({"num_fewshot": 2**40}, "num_fewshot must be a whole number of 32 bits, not 1099511627776 (an int)"),
        ({"batch_size": 8.5}, "batch_size must be a whole number, not 8.5 (a float)"),
        ({"batch_size": True}, "batch_size must be a whole number, not True (a bool)"),
        ({"batch_size": [8]}, "batch_size must be a whole number, not a list"),
        ({"limit": "8"}, "limit must be a number, not '8' (a str)"),
        ({"log_samples": "no"}, "log_samples must be True or False, not 'no' (a str)"),
        ({"device": 0}, "device must be text, not 0 (an int)"),
        ({"num_gpus": 1.5}, "num_gpus must be a whole number of 32 bits, not 1.5 (a float)"),
        ({"harness": ["h"]}, "harness must be text, not a list"),
    ],
)
def test_a_wrong_argument_of_an_evaluation_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        core.evaluate_request(**{"model": "m", "tasks": ["t"], **arguments})

    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"priority": "high"}, "priority must be a whole number of 32 bits, not 'high' (a str)"),
        ({"timeout": "2h"}, "timeout must be a number, not '2h' (a str)"),
        ({"timeout": float("nan")}, "timeout must be a finite number of seconds, not nan"),
        ({"timeout": 1e300}, "timeout must be a finite number of seconds, not 1e+300"),
        ({"request_id": 5}, "request_id must be text, not 5 (an int)"),
        ({"request_id": ID, "max_attempts": None, "priority": []}, "priority must be a whole number of 32 bits, not a list"),
        ({"labels": "run=x"}, "labels must be a dict, not 'run=x' (a str)"),
    ],
)
def test_a_wrong_option_of_a_submission_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}$"):
        core.submit_request(core.evaluate_request("m", ["t"]), **options)


def test_a_request_that_is_no_request_is_named() -> None:
    with pytest.raises(TypeError, match=r"^request must be an EvaluateRequest, not an evalrpc"):
        core.submit_request(JobInfo())  # type: ignore[arg-type]


def test_a_job_in_the_place_of_its_id_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"^job_id must be text, not an evalrpc\.v1\.jobs_pb2\.JobInfo$"):
        values.build(GetJobRequest, job_id=JobInfo())


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"tasks": ("a", "\udcff")}, "tasks[1]: '\\udcff' has a character that UTF-8 can't express"),
        ({"tasks": ["a", 5]}, "tasks[1] must be text, not 5 (an int)"),
        ({"tasks": 5}, "tasks must be text, not 5 (an int)"),
        ({"statuses": ["x"]}, "statuses[0] must be a value of its enum, not 'x' (a str)"),
    ],
)
def test_what_is_wrong_in_a_list_is_named_by_its_place(filters: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}$"):
        values.build(JobFilter, **filters)


def test_numbers_of_numpy_are_numbers_everywhere() -> None:
    request = core.evaluate_request(
        "m", ["t"], num_fewshot=np.int64(2), batch_size=np.int64(8), limit=np.float32(0.5), log_samples=np.bool_(False)
    )

    assert (request.num_fewshot, request.batch_size, request.limit, request.log_samples) == (2, "8", 0.5, False)
    assert core.submit_request(request, timeout=np.int64(90), priority=np.int32(3)).timeout.seconds == 90


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": 5}, "metrics must be a list of texts, not 5 (an int)"),
        ({"metrics": [5]}, "metrics[0] must be text, not 5 (an int)"),
        ({"alpha": "5%"}, "alpha must be a number, not '5%' (a str)"),
        ({"tolerances": {"mme": "x"}}, "tolerance must be a number, not 'x' (a str)"),
        ({"holm": True, "tolerance": []}, "tolerance must be a number, not a list"),
    ],
)
def test_a_wrong_option_of_a_comparison_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        compare_request("a", "b", **options)


def test_a_served_model_may_be_a_dict_with_the_names_of_its_fields() -> None:
    expected = ServedModel(engine="vllm", model="acme/tiny", num_gpus=2)
    expected.args.update({"dtype": "float32", "eager": True})
    given = {"engine": "vllm", "model": Path("acme/tiny"), "args": "dtype=float32,eager=true", "num_gpus": 2}
    assert values.served_model("served_model", given) == values.served_model("served_model", expected) == expected
    assert values.served_model("served_model", None) is None


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("vllm", "served_model must be a ServedModel, or a dict, not 'vllm'"),
        ({"name": "vllm"}, "served_model has no 'name'; it has: engine, model, args, num_gpus"),
        ({"engine": 5}, "served_model.engine must be text, not 5"),
        ({"args": {"a": object()}}, r"served_model.args\['a'\]: .* can't be sent"),
        ({"num_gpus": "many"}, "served_model.num_gpus must be a whole number"),
    ],
)
def test_what_is_no_served_model_is_named(given: Any, problem: str) -> None:
    with pytest.raises((TypeError, ValueError), match=problem):
        values.served_model("served_model", given)
