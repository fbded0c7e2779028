"""What a request asks for besides its model and tasks, as rows."""

import json
from collections.abc import Iterator
from typing import Final

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from evalrpc.cli.wording import duration_text
from evalrpc.jobs.served_models import SERVED_FIELDS
from evalrpc.v1.jobs_pb2 import GpuMode, JobInfo

_NAMED_ELSEWHERE: Final = {"harness", "model", "tasks", *SERVED_FIELDS}
_USUAL: Final = {"log_samples": True, "num_gpus": 0}
"""What most clients say, and nobody looks for."""


def request_facts(job: JobInfo) -> Iterator[tuple[str, str]]:
    """Yield the options that the request of a job sets, by the names that `evalrpc rerun --set` takes, with their values."""
    for field, value in job.request.ListFields():
        if field.name == "secrets":
            yield field.name, ", ".join(value)
        elif field.name not in _NAMED_ELSEWHERE and _USUAL.get(field.name) != value:
            yield field.name, _text(field.name, value)
    if job.HasField("timeout"):
        yield "timeout", duration_text(job.timeout)


def _text(name: str, value: object) -> str:
    if isinstance(value, Struct):
        entries = json_format.MessageToDict(value)
        return ", ".join(f"{key}={_scalar(entry)}" for key, entry in sorted(entries.items()))
    if name == "gpu_mode" and value in GpuMode.values():
        return GpuMode.Name(value).removeprefix("GPU_MODE_").lower().replace("_", "-")  # type: ignore[arg-type]
    return _scalar(value)


def _scalar(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value)
