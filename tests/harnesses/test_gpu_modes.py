"""How the processes of a run share its GPUs: by the model and its arguments, unless the request says so."""

from pathlib import Path
from typing import Any

import pytest
from harness_cases import run_of

from evalrpc.config import HarnessSettings
from evalrpc.harnesses.base import ParallelHarness
from evalrpc.harnesses.inspect_ai.harness import InspectHarness
from evalrpc.harnesses.lm_eval import LmEvalHarness
from evalrpc.harnesses.lmms_eval.harness import LmmsEvalHarness
from evalrpc.v1.jobs_pb2 import (
    GPU_MODE_DATA_PARALLEL,
    GPU_MODE_MODEL_PARALLEL,
    GPU_MODE_UNSPECIFIED,
    EvaluateRequest,
    GpuMode,
)

HARNESSES: list[LmEvalHarness | LmmsEvalHarness] = [
    LmEvalHarness(HarnessSettings("lm-eval", "lm-eval", python=Path("python"))),
    LmmsEvalHarness(HarnessSettings("lmms-eval", "lmms-eval", python=Path("python"))),
]
EITHER = pytest.mark.parametrize("harness", HARNESSES, ids=lambda harness: harness.name)


def request(model: str = "hf", mode: GpuMode.ValueType = GPU_MODE_UNSPECIFIED, **model_args: Any) -> EvaluateRequest:
    message = EvaluateRequest(model=model, tasks=["t"], gpu_mode=mode)
    message.model_args.update({"pretrained": "acme/70b", **model_args})
    return message


def has_a_process_per_gpu(harness: LmEvalHarness | LmmsEvalHarness, message: EvaluateRequest, num_gpus: int = 4) -> bool:
    run = run_of(message, num_gpus=num_gpus)
    is_launched = "accelerate.commands.launch" in harness.command(run).argv
    assert is_launched == (harness.gpu_mode(run) == GPU_MODE_DATA_PARALLEL), "the mode that is shown is the one that runs"
    return is_launched


@EITHER
@pytest.mark.parametrize(
    "model",
    [
        *("vllm", "vllm-vlm", "vllm_chat", "whisper_vllm", "sglang", "sglang-generate", "sglang_runtime", "llava_sglang"),
        *("srt_api", "trtllm", "async_hf_model", "nanovlm"),
    ],
)
def test_an_engine_sees_all_gpus(harness: Any, model: str) -> None:
    assert not has_a_process_per_gpu(harness, request(model))


@EITHER
@pytest.mark.parametrize(
    "model_args",
    [
        {"tensor_parallel_size": 4},
        {"tensor_parallel_size": "2"},
        {"pipeline_parallel_size": 2},
        {"parallelize": True},
        {"parallelize": "True"},
        {"device_map": "auto"},
        {"device_map": "balanced"},
        {"device_map": {"lm_head": 1}},
        {"device_map": "balanced_low_0"},
        {"pp": 2.0},
        {"data_parallel": "4"},
        {"expert_parallel_size": 8},
        {"infer_auto_device_map": True},
        {"tp_degree": 2},
    ],
)
def test_a_model_that_its_arguments_split_is_one_process(harness: Any, model_args: dict[str, Any]) -> None:
    assert not has_a_process_per_gpu(harness, request(**model_args))


@EITHER
@pytest.mark.parametrize(
    "model_args",
    [
        {},
        {"parallelize": False},
        {"tensor_parallel_size": 1},
        {"device_map": ""},
        {"device_map": "cuda:0"},
        {"device_map": None},
        {"device_map": {"": 0}},
        {"tensor_parallel_size": [1]},
        {"tp": "x"},
        {"tp_plan": "auto", "tp_size": 4},
        {"distributed_executor_backend": "external_launcher", "tensor_parallel_size": 4},
        {"tensor_model_parallel_size": 4, "devices": 4},
    ],
)
def test_any_other_model_has_a_process_per_gpu(harness: Any, model_args: dict[str, Any]) -> None:
    assert has_a_process_per_gpu(harness, request("llava_hf", **model_args))


def test_vllm_spreads_its_copies_itself_in_lm_eval_and_needs_a_launcher_for_them_in_lmms_eval() -> None:
    for copies, modes in ((4, [False, True]), ("2", [False, True]), (1, [False, False])):
        message = request("vllm", data_parallel_size=copies)
        assert [has_a_process_per_gpu(harness, message) for harness in HARNESSES] == modes
    assert has_a_process_per_gpu(HARNESSES[1], request("vllm_generate", tensor_parallel_size=2, data_parallel_size=2))
    assert not has_a_process_per_gpu(HARNESSES[1], request("fastvideo", data_parallel=4))


@pytest.mark.parametrize("model", ["local-completions", "openai-chat-completions", "anthropic-chat", "litellm", "gguf"])
def test_one_process_of_lm_eval_asks_a_server(model: str) -> None:
    assert not has_a_process_per_gpu(HARNESSES[0], request(model))
    assert has_a_process_per_gpu(HARNESSES[0], request(model, GPU_MODE_DATA_PARALLEL))


@EITHER
def test_the_request_decides_if_it_says_so(harness: Any) -> None:
    assert has_a_process_per_gpu(harness, request("vllm", GPU_MODE_DATA_PARALLEL))
    assert not has_a_process_per_gpu(harness, request("hf", GPU_MODE_MODEL_PARALLEL))


@EITHER
@pytest.mark.parametrize("num_gpus", [0, 1])
def test_without_several_gpus_there_is_nothing_to_share(harness: Any, num_gpus: int) -> None:
    for mode in GpuMode.values():
        run = run_of(request(mode=mode), num_gpus=num_gpus)
        assert harness.gpu_mode(run) == GPU_MODE_UNSPECIFIED
        assert "accelerate.commands.launch" not in harness.command(run).argv


@pytest.mark.parametrize(
    ("model", "num_gpus", "model_args", "taken"),
    [
        ("vllm", 4, {}, 1),
        ("vllm", 4, {"tensor_parallel_size": 2}, 2),
        ("vllm", 2, {"tensor_parallel_size": "4", "pipeline_parallel_size": 2}, 8),
        ("vllm", 1, {"data_parallel_size": 2.0}, 2),
        ("vllm_generate", 4, {"tensor_parallel_size": "nan"}, 1),
        ("sglang", 8, {"tp_size": 2, "dp_size": 2}, 4),
        ("vllm", 4, {"tensor_parallel_size": 2, "data_parallel_size": 2}, None),
        ("vllm", 1, {}, None),
        ("vllm", 0, {"tensor_parallel_size": 2}, None),
        ("sglang", 8, {"tp_size": 8, "dp_size": 8, "enable_dp_attention": True}, None),
        ("hf", 4, {}, None),
        ("async_hf_model", 4, {}, None),
        ("sglang-generate", 4, {}, None),
    ],
)
@EITHER
def test_gpus_that_an_engine_does_not_use_and_those_that_it_lacks_are_warned_of(
    harness: Any, model: str, num_gpus: int, model_args: dict[str, Any], taken: int | None
) -> None:
    message = request(model, **model_args)
    message.num_gpus = num_gpus
    assert [f" takes {taken}," in warning for warning in harness.warnings(message)] == ([True] if taken else [])
    message.gpu_mode = GPU_MODE_DATA_PARALLEL
    assert not list(harness.warnings(message))


def test_inspect_ai_has_one_way_only() -> None:
    settings = HarnessSettings("inspect-ai", "inspect-ai", python=Path("python"))
    assert not isinstance(InspectHarness(settings), ParallelHarness)
