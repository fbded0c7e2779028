"""Which preparations a request may name, and whether it names a folder for it to prepare."""

import os
from collections.abc import Iterator, Mapping
from typing import Final

from evalrpc.config import HarnessSettings, PreparationSettings
from evalrpc.errors import FieldViolation, InvalidRequestError
from evalrpc.jobs.model_arguments import MODEL_ARGUMENTS, model_argument
from evalrpc.preparations.preparation import model_folder
from evalrpc.v1.jobs_pb2 import EvaluateRequest

_MAX_SHOWN: Final = 80


def violations(request: EvaluateRequest, known: Mapping[str, PreparationSettings]) -> Iterator[FieldViolation]:
    """Yield what is wrong with the `preparation` of a request, as far as that shows without a look at the disk."""
    name = request.preparation
    if not name or request.HasField("served_model"):  # which takes none
        return
    if name not in known:
        has = ", ".join(sorted(known)) or "none"
        yield FieldViolation("request.preparation", f"this server has no preparation {name[:_MAX_SHOWN]!r}; it has: {has}")
    elif model_argument(request) is None:
        arguments = ", ".join(f"`{argument}`" for argument in MODEL_ARGUMENTS)
        yield FieldViolation(
            "request.preparation", f"needs a folder to prepare: name it in `model_args`, as one of {arguments}"
        )


def require_folder(request: EvaluateRequest, harness: HarnessSettings) -> None:
    """Raise InvalidRequestError unless the folder that a valid request has prepared is there. Blocks on the disk."""
    folder = model_folder(request, harness.working_dir)
    if folder is None or not os.path.isdir(folder):  # noqa: PTH112 - which raises nothing, whatever the text
        field, shown = f"request.model_args.{model_argument(request)}", str(folder)[:_MAX_SHOWN]
        problem = f"must be a folder on the server, for preparation {request.preparation}; there is none at {shown!r}"
        raise InvalidRequestError(violations=(FieldViolation(field, problem),))
