"""How a request names the model that an engine serves."""

import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from evalrpc.protobuf.copies import without
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobAttempt, JobInfo, ServedModel

SERVED_FIELD: Final = "served_model"
JUDGE_FIELD: Final = "judge_model"
SERVED_FIELDS: Final = (SERVED_FIELD, JUDGE_FIELD)
"""The fields of a request that name such a model."""

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")


def model_of(request: EvaluateRequest) -> str:
    """Return the model that a request is about, whoever loads it."""
    return request.model or request.served_model.model


def is_folder(served: ServedModel) -> bool:
    """Return whether the model is named by the path of a folder, so that one can tell whether it has changed."""
    return served.model.startswith("/")


def is_known(served: ServedModel) -> bool:
    """Return whether one can tell which weights a model has: by the files of its folder, or by its commit."""
    return is_folder(served) or bool(served.revision)


def model_name(served: ServedModel) -> str:
    """Return the name that harnesses know the model by: the last part of its path, in characters that are safe in a name of a
    file and in an argument of any program. It never begins like an option or a hidden file."""
    last = served.model.rstrip("/").rpartition("/")[2]
    return _UNSAFE.sub("_", last).lstrip("-.") or "model"


class EngineNeed(NamedTuple):
    """An engine that a job needs, as far as its request tells."""

    engine: str
    """Its name among the operator's."""
    identity: str
    """What is equal for jobs that can share it."""
    num_gpus: int
    """How many GPUs one that is started for it gets."""


def served_models(request: EvaluateRequest) -> list[ServedModel]:
    """Return the models that servers answer for: the one that is evaluated, if it is one, and the judge."""
    return [getattr(request, field) for field in SERVED_FIELDS if request.HasField(field)]


def identity(served: ServedModel, job_id: str) -> str:
    """Return what is equal for jobs that can share an engine, as far as their requests tell.

    Another name than that of a folder, or of a commit, is never shared, since nobody can tell whether its weights are still the
    same. How many processes may answer makes no difference.
    """
    sharing = b"" if is_known(served) else job_id.encode()
    return hashlib.sha256(without_replicas(served).SerializeToString(deterministic=True) + sharing).hexdigest()[:32]


def without_replicas(served: ServedModel) -> ServedModel:
    """Return what is equal for jobs that differ only in how many processes may answer."""
    return without(served, "max_replicas")


def replicas_wanted(request: EvaluateRequest, identity_: str, job_id: str) -> int:
    """Return how many processes may answer a job for the model of an identity; 0, if it names none such."""
    named = (each for each in served_models(request) if identity(each, job_id) == identity_)
    return max((max(1, each.max_replicas) for each in named), default=0)


def engine_needs(request: EvaluateRequest, job_id: str) -> tuple[EngineNeed, ...]:
    """Return the engines that a job needs: each once, also if it is to judge its own answers."""
    needs = (EngineNeed(each.engine, identity(each, job_id), each.num_gpus) for each in served_models(request))
    return tuple(dict.fromkeys(needs))


def engine_gpu_count(request: EvaluateRequest) -> int:
    """Return how many GPUs the engines that a job needs have."""
    return sum(need.num_gpus for need in engine_needs(request, ""))


def engine_ids(job: JobInfo) -> list[str]:
    """Return the engines that the latest attempt of a job has asked so far."""
    latest = job.attempts[-1] if job.attempts else JobAttempt()
    return [engine_id for engine_id in (latest.engine_id, latest.judge_engine_id) if engine_id]


def needs_text(needs: Iterable[EngineNeed]) -> str:
    """Return needs as the store keeps them; `needs_of` reads them. Equal for jobs that can share all their engines."""
    return " ".join(f"{need.engine}:{need.identity}:{need.num_gpus}" for need in needs)


@lru_cache(maxsize=4096)
def needs_of(text: str) -> tuple[EngineNeed, ...]:
    """Return the needs that a text stands for."""
    return tuple(EngineNeed(engine, name, int(num_gpus)) for engine, name, num_gpus in (n.split(":") for n in text.split()))
