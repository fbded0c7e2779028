"""What a request means where it leaves a field out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from evalrpc.config import LMMS_EVAL, HarnessSettings, Settings
from evalrpc.config.executors import LOCAL_EXECUTOR
from evalrpc.errors import ConfigurationError
from evalrpc.jobs.served_models import SERVED_FIELDS, engine_needs, replicas_wanted, served_models
from evalrpc.v1.jobs_pb2 import EvaluateRequest

HERE: Final = "."
"""Stands for the machine of the scheduler, among the names of executors."""


@dataclass(frozen=True)
class RequestDefaults:
    """What the server fills in where a request leaves it out."""

    harness: str
    """Empty: a request must name one."""
    num_gpus: int
    """On the server's own machine."""
    executors: Mapping[str, str] = field(default_factory=dict)
    """The executors of the harnesses whose default is not the server's own machine."""
    executor_num_gpus: Mapping[str, int] = field(default_factory=dict)
    """On the other executors."""
    endpoints: frozenset[str] = frozenset()
    """The names of endpoints, which need no GPUs."""

    def fill_in(self, request: EvaluateRequest) -> None:
        """Set `harness`, `executor` and `num_gpus` if they are absent. With a served model, its engine gets the GPUs, and the
        run none."""
        if not request.harness:
            request.harness = self.harness
        is_local_only = served_models(request) or request.preparation
        if not request.executor and not is_local_only:
            request.executor = self.executors.get(request.harness, "")
        for served in served_models(request):
            if not served.HasField("num_gpus"):
                served.num_gpus = 0 if served.engine in self.endpoints else self.num_gpus
        if not request.HasField("num_gpus"):
            num_gpus = self.executor_num_gpus.get(executor_of(request), self.num_gpus)
            request.num_gpus = 0 if request.HasField("served_model") else num_gpus


def request_defaults(settings: Settings, gpu_count: int) -> RequestDefaults:
    """Return the defaults of a server with that many GPUs. Raises ConfigurationError for one that it does not have."""
    chosen = {name: default_executor(harness, settings) for name, harness in settings.harnesses.items()}
    return RequestDefaults(
        _default_harness(settings),
        _default_num_gpus(settings, gpu_count),
        {harness: executor for harness, executor in chosen.items() if executor != LOCAL_EXECUTOR},
        {name: min(1, executor.max_gpus) for name, executor in settings.executors.items()},
        frozenset(settings.endpoints),
    )


def executors_of(harness: HarnessSettings, settings: Settings) -> Sequence[str]:
    """Return where runs of a harness may be placed, by name."""
    return harness.executors or (LOCAL_EXECUTOR, *settings.executors)


def default_executor(harness: HarnessSettings, settings: Settings) -> str:
    """Return where a run of a harness is placed if the request does not say where."""
    allowed = executors_of(harness, settings)
    return settings.default_executor if settings.default_executor in allowed else allowed[0]


def gpus_of_run(request: EvaluateRequest) -> int:
    """Return how many GPUs the harness itself gets. A request always says so, but for jobs stored by release 0.1, which meant
    one."""
    if request.HasField("served_model"):
        return 0
    return request.num_gpus if request.HasField("num_gpus") else 1


def takes_served_slot(request: EvaluateRequest) -> bool:
    """Return whether a job takes a slot of those with a served model: its run has no GPUs of its own."""
    return bool(served_models(request)) and not gpus_of_run(request)


def executor_of(request: EvaluateRequest) -> str:
    """Return the executor that a job is for; empty: the server's own machine."""
    return "" if request.executor == LOCAL_EXECUTOR else request.executor


def queue_of(request: EvaluateRequest) -> str:
    """Return for which nodes a job waits: those of an executor; empty: those of all machines with servers; HERE: that of the
    scheduler, since engines and prepared models are its own."""
    is_bound = bool(served_models(request)) or bool(request.preparation)
    return executor_of(request) or (HERE if is_bound else "")


def gpus_needed(request: EvaluateRequest) -> int:
    """Return how many GPUs a job's request asks for, be it for the harness or for engines."""
    return gpus_of_run(request) + sum(need.num_gpus for need in engine_needs(request, ""))


def most_gpus(request: EvaluateRequest) -> int:
    """Return how many GPUs a job may come to hold: `gpus_needed`, and what replicas of its engines may get besides."""
    needs = engine_needs(request, "")
    replicas = sum(need.num_gpus * (replicas_wanted(request, need.identity, "") - 1) for need in needs)
    return gpus_needed(request) + replicas


def gpus_field(request: EvaluateRequest) -> str:
    """Return the path, from the request on, of the field that asks for most GPUs."""
    counts = gpus_by_field(request)
    return max(counts, key=counts.__getitem__)


def gpus_by_field(request: EvaluateRequest) -> dict[str, int]:
    """Return how many GPUs each field of a request asks for, by its path from the request on."""
    counts = {f"{field}.num_gpus": getattr(request, field).num_gpus for field in SERVED_FIELDS if request.HasField(field)}
    return counts if request.HasField("served_model") else {"num_gpus": gpus_of_run(request), **counts}


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
