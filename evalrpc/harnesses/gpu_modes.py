"""Decides how the processes of a run of lm-eval or lmms-eval share its GPUs: by the model's type and its arguments, unless the
request says so. Knows, too, where the model's arguments take another number of GPUs than the run gets."""

import re
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, Final

from google.protobuf.struct_pb2 import Value

from evalrpc.harnesses.arguments import plain_arguments
from evalrpc.harnesses.base import Run
from evalrpc.jobs.defaults import gpus_of_run
from evalrpc.protobuf.bounds import count
from evalrpc.results.metrics import number
from evalrpc.v1.jobs_pb2 import (
    GPU_MODE_DATA_PARALLEL,
    GPU_MODE_MODEL_PARALLEL,
    GPU_MODE_UNSPECIFIED,
    EvaluateRequest,
    GpuMode,
)

_ENGINES: Final = frozenset({"vllm", "sglang", "srt", "trtllm", "fastvideo", "nanovlm", "async"})
"""Parts of the names of models that an engine runs, which has processes of its own, or that spread their copies themselves."""
_STRATEGIES: Final = ("auto", "balanced", "balanced_low_0", "sequential")
"""The device maps of accelerate that spread a model."""
_SIZES: Final = (
    *("tensor_parallel_size", "tensor_parallel", "tp_size", "tp", "tp_degree", "pipeline_parallel_size", "pp_size", "pp"),
    *("data_parallel_size", "data_parallel", "dp_size", "dp", "expert_parallel_size", "ep_size"),
)
"""Arguments that say over how many GPUs a process spreads its model, or copies of it."""
_SWITCHES: Final = ("parallelize", "infer_auto_device_map")
"""Arguments that have a process spread its model."""
_COUNTED: Final = frozenset(
    {
        *("vllm", "vllm-vlm", "vllm_chat", "vllm_generate", "whisper_vllm", "trtllm"),
        *("sglang", "sglang_runtime", "llava_sglang"),
    }
)
"""Types of models that take exactly as many GPUs as their arguments multiply to, and one without them."""
_FACTORS: Final = (
    ("tensor_parallel_size", "tp_size"),
    ("pipeline_parallel_size", "pp_size"),
    ("data_parallel_size", "dp_size"),
)
"""These arguments, with their other names."""
_SHARED_GPUS: Final = ("enable_dp_attention", "nnodes")
"""Arguments with which the product means something else."""


def gpu_mode(run: Run, of_harness: GpuMode.ValueType = GPU_MODE_UNSPECIFIED) -> GpuMode.ValueType:
    """Return how the processes of a run share its GPUs: see GpuMode in the schema.

    `of_harness` is what the harness alone knows of the model; UNSPECIFIED if that is nothing.
    """
    if run.num_gpus < 2:
        return GPU_MODE_UNSPECIFIED
    arguments = plain_arguments(run.request.model_args)
    is_split = not _is_launched(arguments) and (bool(_ENGINES & name_parts(run.request)) or _splits_model(arguments))
    return run.request.gpu_mode or of_harness or (GPU_MODE_MODEL_PARALLEL if is_split else GPU_MODE_DATA_PARALLEL)


def gpu_warnings(request: EvaluateRequest) -> Iterator[str]:
    """Yield a warning if the engine of the model takes more or fewer GPUs, by the model's arguments, than the run gets."""
    num_gpus, arguments = gpus_of_run(request), request.model_args.fields
    is_counted = request.model in _COUNTED and request.gpu_mode != GPU_MODE_DATA_PARALLEL
    if not (is_counted and num_gpus) or any(name in arguments for name in _SHARED_GPUS):
        return
    taken = prod(max(_size(arguments[name]) if name in arguments else 1 for name in names) for names in _FACTORS)
    if taken != num_gpus:
        gets = "1 GPU" if num_gpus == 1 else f"{num_gpus} GPUs"
        sizes = " x ".join(names[0] for names in _FACTORS)
        yield f"num_gpus: the run gets {gets}, and by its model_args {request.model} takes {taken}, which is {sizes}"


def _size(value: Value) -> int:
    """Return the number of an argument, which may be text; 1 for any other value, of which it may have very many."""
    return count(number(value.string_value or value.number_value)) or 1


def name_parts(request: EvaluateRequest) -> set[str]:
    """Return the words of which the name of the model's type is made."""
    return set(re.split(r"[-_]", request.model))


def is_above_one(value: object) -> bool:
    """Return whether an argument, which may be text, is a number of several GPUs."""
    return (number(value) or 0) > 1


def _is_launched(arguments: Mapping[str, Any]) -> bool:
    """Return whether the model is split, but by processes that a launcher has to start, one for each GPU."""
    return bool(arguments.get("tp_plan")) or arguments.get("distributed_executor_backend") == "external_launcher"


def _splits_model(arguments: Mapping[str, Any]) -> bool:
    """Return whether one process spreads the model over all GPUs that it sees."""
    return (
        any(str(arguments.get(name)).lower() in ("true", "1") for name in _SWITCHES)
        or _is_spread(arguments.get("device_map"))
        or any(is_above_one(arguments.get(name)) for name in _SIZES)
    )


def _is_spread(device_map: object) -> bool:
    """Return whether a device map names a strategy, or several devices, rather than one device for the whole model."""
    if isinstance(device_map, dict):
        return device_map.keys() != {""}
    return device_map in _STRATEGIES
