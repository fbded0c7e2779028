"""How a request names the model that an engine serves."""

import hashlib
import re
from typing import Final

from evalrpc.v1.jobs_pb2 import EvaluateRequest, ServedModel

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")


def model_of(request: EvaluateRequest) -> str:
    """Return the model that a request is about, whoever loads it."""
    return request.model or request.served_model.model


def is_folder(served: ServedModel) -> bool:
    """Return whether the model is named by the path of a folder, so that one can tell whether it has changed."""
    return served.model.startswith("/")


def model_name(served: ServedModel) -> str:
    """Return the name that harnesses know the model by: the last part of its path, in characters that are safe in a name of a
    file and in an argument of any program. It never begins like an option or a hidden file."""
    last = served.model.rstrip("/").rpartition("/")[2]
    return _UNSAFE.sub("_", last).lstrip("-.") or "model"


def identity(request: EvaluateRequest, job_id: str) -> str:
    """Return what is equal for jobs that can share an engine, as far as their requests tell; empty without a served model.

    A model that is no folder is never shared, since nobody can tell whether its weights are still the same.
    """
    if not request.HasField("served_model"):
        return ""
    served = request.served_model
    sharing = b"" if is_folder(served) else job_id.encode()
    return hashlib.sha256(served.SerializeToString(deterministic=True) + sharing).hexdigest()[:32]
