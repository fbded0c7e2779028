"""What a request means where it leaves a field out."""

from pathlib import Path
from typing import Any

import pytest

from evalrpc.config import HarnessSettings, Settings
from evalrpc.errors import ConfigurationError
from evalrpc.jobs.defaults import RequestDefaults, gpus_needed, request_defaults
from evalrpc.v1.jobs_pb2 import EvaluateRequest


def settings(*harnesses: str, **more: Any) -> Settings:
    return Settings(harnesses={name: HarnessSettings(name, "command", working_dir=Path()) for name in harnesses}, **more)


@pytest.mark.parametrize(
    ("harnesses", "chosen", "expected"),
    [
        (("nightly",), "", "nightly"),
        (("lmms-eval", "nightly"), "", "lmms-eval"),
        (("lm-eval", "nightly"), "", ""),
        (("lmms-eval", "nightly"), "nightly", "nightly"),
    ],
)
def test_the_default_harness_is_the_chosen_the_only_one_or_lmms_eval(
    harnesses: tuple[str, ...], chosen: str, expected: str
) -> None:
    assert request_defaults(settings(*harnesses, default_harness=chosen), 0).harness == expected


def test_a_server_that_configures_no_harness_has_lmms_eval() -> None:
    assert request_defaults(Settings(), 0).harness == "lmms-eval"


@pytest.mark.parametrize(
    ("gpus", "chosen", "expected"), [(0, None, 0), (1, None, 1), (8, None, 1), (8, 0, 0), (8, 8, 8), (0, 0, 0)]
)
def test_the_default_is_one_gpu_where_there_is_one(gpus: int, chosen: int | None, expected: int) -> None:
    assert request_defaults(settings("h", default_num_gpus=chosen), gpus).num_gpus == expected


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"default_harness": "c"}, "setting default_harness: there is no harness c; configured are: a, b"),
        ({"default_num_gpus": 3}, "setting default_num_gpus: 3 is more than the 2 GPUs of this server"),
    ],
)
def test_a_default_that_the_server_does_not_have_is_refused(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        request_defaults(settings("b", "a", **chosen), 2)
    assert error.value.message == message


@pytest.mark.parametrize("num_gpus", [-1, -(10**20)])
def test_a_negative_default_is_refused(num_gpus: int) -> None:
    with pytest.raises(ConfigurationError, match="setting default_num_gpus: must be at least 0"):
        settings("a", default_num_gpus=num_gpus)


def test_only_what_is_absent_is_filled_in() -> None:
    defaults = RequestDefaults("toy", 2)
    absent, present = EvaluateRequest(model="m"), EvaluateRequest(model="m", harness="other", num_gpus=0)
    defaults.fill_in(absent)
    defaults.fill_in(present)
    assert absent == EvaluateRequest(model="m", harness="toy", num_gpus=2)
    assert present == EvaluateRequest(model="m", harness="other", num_gpus=0)


def test_a_stored_job_that_says_nothing_asked_for_one_gpu() -> None:
    assert gpus_needed(EvaluateRequest()) == 1
    assert gpus_needed(EvaluateRequest(num_gpus=0)) == 0
    assert gpus_needed(EvaluateRequest(num_gpus=3)) == 3
