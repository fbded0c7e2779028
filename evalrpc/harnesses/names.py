"""Names allowed on a harness's command line: never an option, a path, a pattern or a list."""

import re
from typing import Final

from evalrpc.errors import FieldViolation
from evalrpc.v1.jobs_pb2 import EvaluateRequest

_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu|npu|hpu|mlu)(:[0-9]{1,3})?")
_FILE_SUFFIXES: Final = (".yaml", ".yml", ".json", ".py")


def task_problem(task: str) -> str | None:
    """Say why it is not a task's name; None if it is."""
    if not task or task != task.strip() or not task.isprintable():
        return "must be a task's name"
    if task[0] in "-." or any(character in task for character in ",/\\*?[]"):
        return "must be one task's name: no path, no pattern, no list, no option"
    if task.endswith(_FILE_SUFFIXES):
        return "must be a task's name and not a file's"
    return None


def device_violations(request: EvaluateRequest) -> list[FieldViolation]:
    """Return a violation for an invalid device."""
    if not request.device or _DEVICE.fullmatch(request.device):
        return []
    return [FieldViolation("device", "must be a device such as `cuda`, `cuda:0`, `cpu` or `mps`")]
