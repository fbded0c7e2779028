"""Real runs of the harnesses, as tests/data keeps them: a folder per run with its output, its log and its exit code."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from google.protobuf.json_format import ParseDict

from evalrpc.harnesses.base import Exit, Harness, Run
from evalrpc.v1.job_pb2 import EvaluateRequest, Progress

DATA = Path(__file__).parent / "data"


def request_of(**fields: Any) -> EvaluateRequest:
    return ParseDict(fields, EvaluateRequest())


def run_of(request: EvaluateRequest, output_dir: Path = Path("/d/out"), gpus: tuple[str, ...] = ()) -> Run:
    return Run("job", 1, request, Path("/d"), output_dir, gpus)


def log_of(case: Path) -> list[str]:
    """The lines of its log, each drawing of a bar for itself."""
    files = (case / name for name in ("stdout.log", "stderr.log", "combined.log"))
    return [line for file in files if file.exists() for line in re.split(r"[\r\n]", file.read_text())]


def exit_of(case: Path) -> Exit:
    code = int((case / "exit_code").read_text())
    return Exit(code=code) if code >= 0 else Exit(signal=-code)


def follow(harness: Harness, lines: Iterable[str]) -> list[Progress]:
    """The progress after each line that changed it."""
    progress, changes = Progress(), []
    for line in lines:
        if harness.read_progress(line, progress):
            changes.append(Progress())
            changes[-1].CopyFrom(progress)
    return changes
