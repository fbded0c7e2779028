"""What a request means where it leaves a field out."""

from dataclasses import dataclass
from typing import Final

from evalrpc.config import LMMS_EVAL, Settings
from evalrpc.errors import ConfigurationError
from evalrpc.v1.jobs_pb2 import EvaluateRequest

LOCAL_EXECUTOR: Final = "local"
"""What requests call the server's own machine."""


@dataclass(frozen=True)
class RequestDefaults:
    """What the server fills in where a request leaves it out."""

    harness: str
    """Empty: a request must name one."""
    num_gpus: int

    def fill_in(self, request: EvaluateRequest) -> None:
        """Set `harness` and `num_gpus` if they are absent. With a served model, its engine gets the GPUs, and the run none."""
        if not request.harness:
            request.harness = self.harness
        if request.HasField("served_model") and not request.served_model.HasField("num_gpus"):
            request.served_model.num_gpus = self.num_gpus
        if not request.HasField("num_gpus"):
            request.num_gpus = 0 if request.HasField("served_model") else self.num_gpus


def request_defaults(settings: Settings, gpu_count: int) -> RequestDefaults:
    """Return the defaults of a server with that many GPUs. Raises ConfigurationError for one that it does not have."""
    return RequestDefaults(_default_harness(settings), _default_num_gpus(settings, gpu_count))


def gpus_needed(request: EvaluateRequest) -> int:
    """Return how many GPUs a job's request asks for, be it for an engine. It always says so, but for jobs stored by release
    0.1, which meant one."""
    if request.HasField("served_model"):
        return request.served_model.num_gpus
    return request.num_gpus if request.HasField("num_gpus") else 1


def executor_of(request: EvaluateRequest) -> str:
    """Return the executor that a job is for; empty: the server's own machine."""
    return "" if request.executor == LOCAL_EXECUTOR else request.executor


def gpus_field(request: EvaluateRequest) -> str:
    """Return the path, from the request on, of the field that says how many GPUs it asks for."""
    return "served_model.num_gpus" if request.HasField("served_model") else "num_gpus"


def _default_harness(settings: Settings) -> str:
    chosen, configured = settings.default_harness, settings.harnesses
    if chosen and chosen not in configured:
        raise ConfigurationError(
            f"setting default_harness: there is no harness {chosen}; configured are: {', '.join(sorted(configured))}"
        )
    if chosen or len(configured) == 1:
        return chosen or next(iter(configured))
    return LMMS_EVAL if LMMS_EVAL in configured else ""


def _default_num_gpus(settings: Settings, gpu_count: int) -> int:
    if settings.default_num_gpus is None:
        return min(gpu_count, 1)
    if settings.default_num_gpus > gpu_count:
        raise ConfigurationError(
            f"setting default_num_gpus: {settings.default_num_gpus} is more than the {gpu_count} GPUs of this server"
        )
    return settings.default_num_gpus
