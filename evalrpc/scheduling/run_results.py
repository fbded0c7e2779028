"""What has come of a run so far: results of its steps as they end, and of the tasks that the harness reports meanwhile."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from evalrpc.errors import RunFailedError
from evalrpc.executors.base import RunHandle
from evalrpc.files.errnos import require_no_shortage
from evalrpc.files.opening import scan_folder
from evalrpc.harnesses.base import Exit, Run
from evalrpc.harnesses.failures import without_listing
from evalrpc.jobs.paths import results_path
from evalrpc.jobs.size_limits import results_room
from evalrpc.protobuf.bounds import int32
from evalrpc.results.bounding import add_artifact_names, bounded, lacks_some
from evalrpc.results.merging import MergedResults, Results
from evalrpc.results.results_file import write_results
from evalrpc.scheduling.kept_steps import RunSteps
from evalrpc.scheduling.log_tail import read_tail
from evalrpc.scheduling.results_reader import ResultsReader
from evalrpc.secrets.masking import NO_MASK, Mask
from evalrpc.v1.jobs_pb2 import JobError
from evalrpc.v1.results_pb2 import ModelResult

_JUDGED_LINES: Final = 400  # the cause of a failure may stand well before the last lines
_JUDGED_BYTES: Final = 128 * 1024
_MAX_ENTRIES: Final = 10_000
"""How many files of a folder are looked at, twice a second. A run may leave a million."""


class RunResults:
    """Reads what the steps of one run leave. Made anew, after a restart, it finds the same again.

    Used by one thread, but for `results`, which any may read meanwhile. What it asks of the run, and what it writes, may raise
    OSError.
    """

    def __init__(
        self, run: Run, reader: ResultsReader, steps: RunSteps, handle: RunHandle, log_path: Path, mask: Mask = NO_MASK
    ) -> None:
        self._run = run
        self._reader = reader
        self._all_steps = steps
        self._steps = steps.to_run
        self._kept = list(steps.kept)
        self._handle = handle
        self._log_path = log_path
        self._mask = mask
        self._judged = 0
        self._failures: list[tuple[Run, RunFailedError]] = []
        self._files: dict[str, bytes] = {}
        self._merged = MergedResults()
        self._reported = MergedResults()
        self._taken: Results = {}

        self.results: Results = {}
        """What has finished so far, by model, as the job carries it. Another object when there is more; never modified."""

    def look(self) -> None:
        """Take in what has finished since the last look, which costs little where nothing has.

        The last step is left to `finish`: then no process is there any more that could write.
        """
        self._take_kept()
        ends = self._handle.step_ends()
        while self._judged < min(len(ends), len(self._steps) - 1):
            self._judge_next(ends)
        self._read_reported()
        self._publish()

    def finish(self) -> None:
        """Take in the rest, after the end of the run.

        Raises RunFailedError, that of the first step that failed, if any did. `results` then has those of the others.
        """
        self._take_kept()
        ends = self._handle.step_ends()
        while self._judged < min(len(self._steps), len(ends) + 1):  # one that left no word was the last to run
            self._judge_next(ends)
        if self._failures:
            self._read_reported()
        self._publish()
        if self._failures:
            raise self._failure()

    def _publish(self) -> None:
        found = self._merged.results() or self._reported.results()
        if found is not self._taken:
            self.results = self._take_over(found)
            self._taken = found  # last: what could not be written for want of something is by the next look

    def _take_over(self, found: Results) -> Results:
        """Return what the job's message can hold. All that it lacks is on the disk by then."""
        add_artifact_names(found, self._run.output_dir)
        for result in found.values():
            result.warnings[:] = map(self._mask.text, result.warnings)
        kept = bounded(found, results_room(self._run.request.ByteSize()))
        if lacks_some(kept):
            write_results(results_path(self._run.attempt_dir), found)
        return kept

    def _take_kept(self) -> None:
        """Take in what an earlier attempt has finished."""
        while self._kept:
            step, attempt = self._kept[-1]
            try:
                self._merged.add(_of_attempt(self._reader.read_results(step, Exit(code=0), []), attempt))
            except RunFailedError as error:
                self._failures.append((step, error))
            self._kept.pop()  # last: what could not be read for want of something is read by the next look

    def _judge_next(self, ends: Sequence[int]) -> None:
        number = self._judged
        begin, end = ([0, *ends][number], [*ends, None][number])  # None: to the end of the log
        try:
            found = self._read_step(number, read_tail(self._log_path, _JUDGED_LINES, _JUDGED_BYTES, begin, end, self._mask))
            self._merged.add(_of_attempt(found, self._run.attempt))
            self._all_steps.note_finished(self._steps[number])
        except RunFailedError as error:
            error.job_error.log_tail[:] = map(without_listing, read_tail(self._log_path, begin=begin, end=end, mask=self._mask))
            self._failures.append((self._steps[number], error))
        self._judged += 1  # last: a step that could not be read for want of something is judged by the next look

    def _read_step(self, number: int, log_tail: list[str]) -> Mapping[str, ModelResult]:
        """Read what a step left. Raises RunFailedError."""
        exit_status = self._handle.exit_status(number)
        if exit_status.code is None and exit_status.signal is None:
            raise RunFailedError(
                "RUN_LOST",
                "the run has left no exit status: it, or what records its end, was killed, or it removed that itself",
            )
        try:
            return self._reader.read_results(self._steps[number], exit_status, log_tail)
        except RunFailedError as error:
            error.job_error.MergeFrom(JobError(exit_code=int32(exit_status.code), signal=int32(exit_status.signal)))
            raise

    def _read_reported(self) -> None:
        """Ask the harness for the tasks that have finished, by the files that have come or changed."""
        (step, *more) = self._steps
        if more or not self._reader.reports_tasks:
            return
        before, self._files = self._files, _files_in(step.output_dir)
        for name in [name for name, state in self._files.items() if before.get(name) != state]:
            try:
                self._reported.add(_of_attempt(self._reader.read_finished(step, name), self._run.attempt))
            except OSError:
                del self._files[name]  # the next look will tell
            except RunFailedError:
                continue  # the end of the run will tell

    def _failure(self) -> RunFailedError:
        """Return the first failure; of several tasks with the one that failed named, and those that came to nothing besides."""
        (step, first), *others = self._failures
        self._failures = []  # an error that is raised has the frames that have these results
        if self._all_steps.are_several:
            notes = [f"{_task(step)}: {first.message}"]
            notes += [f"also failed: {', '.join(_task(other) for other, _ in others)}"] if others else []
            notes += [f"not run: {', '.join(map(_task, self._steps[self._judged :]))}"] if self._steps[self._judged :] else []
            first.job_error.message = "; ".join(notes)
        return first


def _of_attempt(results: Mapping[str, ModelResult], attempt: int) -> Mapping[str, ModelResult]:
    """Note in the results which attempt they are of."""
    for result in results.values():
        for task in result.tasks:
            task.attempt = attempt
    return results


def _files_in(folder: Path) -> dict[str, bytes]:
    """Return the files right in the folder, in the order of their names, with what changes whenever one of them does. Empty
    where something else is in its place, or where there are too many: then only the end of the run tells. Raises OSError for a
    shortage of the server, or a failing disk."""
    files: dict[str, bytes] = {}
    try:
        with scan_folder(folder) as scanned:
            for number, entry in enumerate(scanned):
                if number == _MAX_ENTRIES:
                    return {}
                if entry.is_file(follow_symlinks=False):
                    files[entry.name] = _state(entry.stat(follow_symlinks=False))
    except OSError as error:
        require_no_shortage(error)
        return {}
    return dict(sorted(files.items()))


def _state(status: os.stat_result) -> bytes:
    """Return what changes whenever a file does, in one small object: there may be very many."""
    return b"%d %d %d" % (status.st_ino, status.st_mtime_ns, status.st_size)


def _task(step: Run) -> str:
    return step.request.tasks[0]
