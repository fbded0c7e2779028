"""Recorded runs: what a run of the real program left, kept in a folder, to test a harness without the program.

    output/                              what the program wrote into its output folder
    log                                  what it printed; or stdout.log, stderr.log, combined.log
    exit_code                            how it ended, negative for a signal; 0 where there is no such file

The folder of an attempt in a server's data directory, `data_dir/jobs/JOB_ID/attempt-1`, is such a folder. The functions below
use a harness on it as the server does, and raise AssertionError where it breaks its contract.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from google.protobuf.json_format import ParseDict

from evalrpc.errors import RunFailedError, SamplesNotFoundError
from evalrpc.harnesses.base import Exit, Harness, Run, SampleRow, TaskReporter
from evalrpc.reading.sample_files import open_samples
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobError, JobInfo, Progress
from evalrpc.v1.results_pb2 import ModelResult

GOOD_EXIT: Final = Exit(code=0)

_LOG_NAMES: Final = ("log", "stdout.log", "stderr.log", "combined.log")
_MAX_MESSAGE_BYTES: Final = 2048


def request_of(**fields: Any) -> EvaluateRequest:
    """Return a request with these fields, as plain values: `request_of(model="m", tasks=["t"], model_args={"a": 1})`."""
    return ParseDict(fields, EvaluateRequest())


def run_in(folder: Path, request: EvaluateRequest, num_gpus: int = 0) -> Run:
    """Return a run of the request whose folder is this one, and whose output is in `output` there."""
    return Run("job-id", 1, request, folder, folder / "output", num_gpus)


def log_of(recorded_run: Path) -> list[str]:
    """Return the lines of its log, each update of a progress bar on its own."""
    files = (recorded_run / name for name in _LOG_NAMES)
    return [line for file in files if file.exists() for line in re.split(r"[\r\n]", file.read_text(errors="replace"))]


def exit_of(recorded_run: Path) -> Exit:
    """Return how it ended."""
    path = recorded_run / "exit_code"
    code = int(path.read_text()) if path.exists() else 0
    return Exit(code=code) if code >= 0 else Exit(signal=-code)


def follow(harness: Harness, lines: Iterable[str]) -> list[Progress]:
    """Return the progress after each line that changed it."""
    progress, changes = Progress(), []
    for line in lines:
        if harness.read_progress(line, progress):
            changes.append(Progress())
            changes[-1].CopyFrom(progress)
    return changes


def results_of(harness: Harness, run: Run, exit_status: Exit = GOOD_EXIT, log: Iterable[str] = ()) -> Mapping[str, ModelResult]:
    """Return the results that a harness reads, after reading all their samples once.

    Raises RunFailedError if the harness says that the run failed, and AssertionError if it says so in no readable way, or
    has no results, or names files outside the output folder.
    """
    if isinstance(harness, TaskReporter):
        _look_in_between(harness, run)
    try:
        results = harness.read_results(run, exit_status, list(log))
    except RunFailedError as error:
        _require_readable(error.job_error)
        raise
    assert results, "read_results returned nothing: raise RunFailedError where there are no results"
    for result in results.values():
        _require_within(run.output_dir, result)
        for path in result.samples:
            with suppress(SamplesNotFoundError):
                rows_of(harness, run.output_dir, path)
    return results


def judge(harness: Harness, run: Run, exit_status: Exit = GOOD_EXIT, log: Iterable[str] = ()) -> Mapping[str, ModelResult]:
    """Return what `results_of` does, and nothing for a run that failed. For output that may be either, but nothing else."""
    try:
        return results_of(harness, run, exit_status, log)
    except RunFailedError:
        return {}


def rows_of(harness: Harness, output_dir: Path, path: str, offset: int = 0) -> list[SampleRow]:
    """Return the rows of a samples file from an offset on, as the server reads them. Raises what `open_samples` raises."""
    job = JobInfo(job_id="job-id")
    job.request.harness = harness.name
    with open_samples(job, output_dir, path, {harness.name: harness}, offset) as rows:
        return list(rows)


def _look_in_between(reporter: TaskReporter, run: Run) -> None:
    """Read as during the run: there may be no results yet, but none that are wrong."""
    for name in (path.name for path in run.output_dir.glob("*") if path.is_file() and not path.is_symlink()):
        with suppress(RunFailedError):
            for result in reporter.read_finished(run, name).values():
                _require_within(run.output_dir, result)


def _require_readable(error: JobError) -> None:
    reason, message = error.reason, error.message
    assert re.fullmatch(r"[A-Z][A-Z_]+", reason), f"the reason {reason!r} of a failure must be CAPITALS_WITH_UNDERSCORES"
    assert message, f"a failure with reason {reason} must say what happened"
    assert "\n" not in message, f"the message of a failure must be one line, such as `shorten` makes, and not {message!r}"
    size_bytes = len(message.encode())
    assert size_bytes <= _MAX_MESSAGE_BYTES, f"the message of a failure takes {size_bytes} bytes: `shorten` makes it readable"


def _require_within(folder: Path, result: ModelResult) -> None:
    assert ModelResult.FromString(result.SerializeToString()) == result, f"a result changes on its way to a client:\n{result}"
    for path in map(Path, (result.results, *result.samples)):
        assert path.resolve().is_relative_to(folder.resolve()), f"the results name {path}, which is not below {folder}"
        assert path.is_file(), f"the results name {path}, which is no file"
        assert not path.is_symlink(), f"the results name {path}, which is a link: a run must not choose what is read"
