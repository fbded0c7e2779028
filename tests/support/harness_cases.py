"""Real runs of the harnesses, as kept in tests/data: a folder per run with its output, its log and its exit code."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from google.protobuf.json_format import ParseDict

from evalrpc.errors import RunFailedError, SamplesNotFoundError
from evalrpc.harnesses.base import Exit, Harness, Run, SampleRow, TaskReporter
from evalrpc.reading.sample_files import open_samples
from evalrpc.v1.job_pb2 import EvaluateRequest, JobAttempt, JobError, JobInfo, ModelResult, Progress

DATA = Path(__file__).parents[1] / "data"
GOOD_EXIT = Exit(code=0)


def request_of(**fields: Any) -> EvaluateRequest:
    return ParseDict(fields, EvaluateRequest())


def run_of(request: EvaluateRequest, output_dir: Path = Path("/d/out"), gpus: tuple[str, ...] = ()) -> Run:
    return Run("job", 1, request, Path("/d"), output_dir, gpus)


def log_of(case: Path) -> list[str]:
    """The lines of its log, each update of a progress bar on its own."""
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


def judge(harness: Harness, run: Run, exit_status: Exit = GOOD_EXIT, log: list[str] | None = None) -> Mapping[str, ModelResult]:
    """The results, or none with an error that may be shown to people. Anything else fails the test."""
    if isinstance(harness, TaskReporter):
        look_in_between(harness, run)
    try:
        results = harness.read_results(run, exit_status, log or [])
    except RunFailedError as error:
        assert_readable(error.job_error)
        return {}
    assert results
    for result in results.values():
        assert_within(run.output_dir, result)
        for path in result.samples:
            with suppress(SamplesNotFoundError):
                rows_of(harness, run.output_dir, path)
    return results


def rows_of(harness: Harness, output_dir: Path, path: str, offset: int = 0) -> list[SampleRow]:
    """The rows of a samples file, as the server reads them."""
    job = JobInfo(job_id="job", attempts=[JobAttempt(output_dir=str(output_dir))])
    job.request.harness = harness.name
    with open_samples(job, path, {harness.name: harness}, offset) as rows:
        return list(rows)


def look_in_between(reporter: TaskReporter, run: Run) -> None:
    """Read as during the run: there may be no results, but none that are wrong."""
    for name in (path.name for path in run.output_dir.glob("*") if path.is_file() and not path.is_symlink()):
        with suppress(RunFailedError):
            for result in reporter.read_finished(run, name).values():
                assert_within(run.output_dir, result)


def assert_readable(error: JobError) -> None:
    assert re.fullmatch(r"[A-Z][A-Z_]+", error.reason)
    assert 0 < len(error.message.encode()) <= 2048
    assert "\n" not in error.message


def assert_within(folder: Path, result: ModelResult) -> None:
    assert ModelResult.FromString(result.SerializeToString()) == result
    for path in map(Path, (result.results, *result.samples)):
        assert path.resolve().is_relative_to(folder)
        assert path.is_file()
        assert not path.is_symlink()
