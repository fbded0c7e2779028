"""Cache keys: evaluations of one owner are identical if the harness would be started in the same way, on the same files.

So the key covers the command that the harness builds, including what the operator's settings add, and not how the request was
written. Blocks: runs on a thread.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from google.protobuf.struct_pb2 import Struct, Value

from evalrpc.errors import RunFailedError
from evalrpc.files.fingerprints import MAX_FILES, fingerprint_files
from evalrpc.harnesses.base import Command, Harness, Run, ServedEndpoint, ServedHarness
from evalrpc.jobs import transitions
from evalrpc.jobs.defaults import gpus_of_run
from evalrpc.jobs.served_models import model_name
from evalrpc.preparations.preparation import Preparation
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobInfo, ServedModel

_SOMEWHERE: Final = "http://127.0.0.1:1/v1"
_NOWHERE: Final = Path("/evalrpc")  # stands for the folders of an attempt, which differ between jobs


class ModelServers(Protocol):
    """What answers for served models."""

    def key(self, served: ServedModel) -> str:
        """Return what is equal as long as the answers of a model are; empty if that can't be told. Blocks."""

    def api_of(self, served: ServedModel) -> tuple[str, ...]:
        """Return what it can answer. Raises RunFailedError."""


def cache_key(
    harness: Harness, job: JobInfo, preparation: Preparation | None = None, judge: str = "", servers: ModelServers | None = None
) -> bytes:
    """Return a digest that is equal for identical evaluations of the same owner, whose model is prepared, or served, in the
    same way; empty if that can't be decided, and then the job gets a warning that says why. `judge`: what the answers of the
    judge depend on; empty: there is none, or that can't be told. `servers`: for jobs with a served model."""
    request = job.request
    if request.output_dir:
        return _no_key(job, "output_dir asks for results in a folder of the job's own")
    is_served = request.HasField("served_model")
    served_by = servers.key(request.served_model) if is_served and servers is not None else ""
    if is_served and not served_by:
        return _no_key(job, "nobody can tell whether the name of the served model stands for the same weights as before")
    if request.HasField("judge_model") and not judge:
        return _no_key(job, "nobody can tell whether the name of the judge stands for the same weights as before")
    try:
        if servers is not None:
            request = _pointed(harness, request, servers)
        command = harness.command(_run(request))
    except RunFailedError as error:
        return _no_key(job, error.message)
    files = fingerprint_files([*command.watched_dirs, *_named_files(command), *_model_paths(request, command.cwd)])
    if files is None:
        return _no_key(job, f"the files that the model or the harness is made of are more than {MAX_FILES}, or can't be read")
    facts = (
        (harness.name, harness.kind, harness.info().version, gpus_of_run(request)),
        (command.argv, sorted(command.env.items()), command.cwd, sorted(command.files.items())),
        files,
        request.max_bad_answer_ratio if request.HasField("max_bad_answer_ratio") else None,
        *([preparation.definition] if preparation is not None else []),
        *([judge] if judge else []),
        *([served_by] if served_by else []),
        *([sorted(request.secrets)] if request.secrets else []),  # their names, and never their values
    )
    return hashlib.sha256(f"{facts!r}{job.owner}".encode()).digest()


def _pointed(harness: Harness, request: EvaluateRequest, servers: ModelServers) -> EvaluateRequest:
    """Return the request as the harness gets it, with an address that is always the same. Raises RunFailedError."""
    if not request.HasField("served_model") or not isinstance(harness, ServedHarness):
        return request
    served = request.served_model
    return harness.with_served_model(
        request, ServedEndpoint(_SOMEWHERE, model_name(served), served.model, servers.api_of(served))
    )


def _no_key(job: JobInfo, reason: str) -> bytes:
    transitions.add_warnings(job, [f"the cache is not used: {reason}"])
    return b""


def _run(request: EvaluateRequest) -> Run:
    return Run("", 1, request, attempt_dir=_NOWHERE, output_dir=_NOWHERE / "output", num_gpus=gpus_of_run(request))


def _named_files(command: Command) -> Iterator[Path]:
    """Yield the files that the command line names, such as the harness's interpreter or the operator's script."""
    return (path for argument in command.argv if (path := _path(argument, command.cwd)) and path.is_file())


def _model_paths(request: EvaluateRequest, cwd: Path | None) -> Iterator[Path]:
    """Yield the files and folders that the model, or an argument of it or of the tasks, names; ignore other text."""
    texts = {request.model, *_texts(request.model_args), *_texts(request.task_args)}
    return (path for text in sorted(texts) if (path := _path(text, cwd)))  # the order of a Struct differs between processes


def _path(text: str, cwd: Path | None) -> Path | None:
    path = os.path.join(cwd or "", text)  # noqa: PTH118 - of any text, and Path would change it
    return Path(path) if text and os.path.exists(path) else None  # noqa: PTH110 - which raises nothing, whatever the text


def _texts(struct: Struct) -> Iterator[str]:
    pending = list(struct.fields.values())
    while pending:
        value: Value = pending.pop()
        pending.extend(value.struct_value.fields.values())
        pending.extend(value.list_value.values)
        if value.string_value:
            yield value.string_value
