"""Which argument of a request names the weights of its model."""

from typing import Final

from evalrpc.v1.jobs_pb2 import EvaluateRequest

MODEL_ARGUMENTS: Final = ("pretrained", "model_path", "model_version", "model")
"""The arguments of models that may name a folder; the first of them in a request does."""


def model_argument(request: EvaluateRequest) -> str | None:
    """Return the name of the argument that names the model's folder; None if there is none."""
    fields = request.model_args.fields
    return next((name for name in MODEL_ARGUMENTS if name in fields and fields[name].string_value), None)
