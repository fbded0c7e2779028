"""Sees to it that the model of an attempt is prepared before its harness starts.

    data_dir/jobs/JOB_ID/attempt-N/preparation/place    where among the prepared models its own is, or will be
                                           .../log      what the preparation printed
                                           .../made/    what it makes, until that is whole and moved to the prepared models

`place` is written before the attempt begins, `made` only by the job whose turn it is to prepare. So whatever happens to the
server, the next one finds which job prepares what. The run of a preparation is known by an id of its own: nothing that looks
for the harness's processes takes those of the preparation for them.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final, NoReturn, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.clock import Clock, Stopwatch
from evalrpc.errors import RunFailedError
from evalrpc.executors.base import Executor, Resources, RunHandle, RunKey
from evalrpc.files.errnos import require_no_shortage
from evalrpc.files.opening import read_note, scan_folder
from evalrpc.files.private import create_private_file, make_private_folder
from evalrpc.files.trees import remove_tree
from evalrpc.harnesses.base import Exit, Run
from evalrpc.harnesses.failures import failure_or_last_line, shorten
from evalrpc.jobs.paths import attempt_dir, preparation_dir
from evalrpc.preparations.preparation import Preparation, model_folder, place_of, with_model
from evalrpc.preparations.prepared_models import PreparedModels
from evalrpc.protobuf.bounds import int32, timestamp_of_ns
from evalrpc.scheduling.log_tail import LogFollower, read_tail
from evalrpc.scheduling.phase_reports import PhaseReports
from evalrpc.scheduling.run_accounts import RunAccounts
from evalrpc.v1.jobs_pb2 import EvaluateRequest, JobError, JobInfo, Progress

FAILED: Final = "PREPARATION_FAILED"

_LOOK_SECONDS: Final = 0.5
_PLACE: Final = "place"
_MADE: Final = "made"
_MAX_PLACE_BYTES: Final = 1024
_JUDGED_LINES: Final = 400
_JUDGED_BYTES: Final = 128 * 1024

_UNKNOWN: Final = Exit()

_Reason = TypeVar("_Reason")


@dataclass(frozen=True)
class Preparing:
    """What the preparations of all jobs share."""

    preparations: Mapping[str, Preparation]
    models: PreparedModels
    executor: Executor
    accounts: RunAccounts
    clock: Clock
    data_dir: Path
    max_log_bytes: int = 0
    """How large the log of a preparation may become. 0: as large as it likes."""

    def request_of(self, job: JobInfo, attempt: int, working_dir: Path) -> EvaluateRequest:
        """Return the request of an attempt as its harness gets it: with the prepared folder, which need not be there yet.

        What it says is on the disk by then, and does not change. Raises RunFailedError, OSError, StoreUnavailableError.
        """
        if not job.request.preparation:
            return job.request
        folder = self._folder(job, attempt)
        place = _read_place(folder)
        if place is None:
            place = self._place(job, working_dir)
            make_private_folder(folder)
            with create_private_file(folder / _PLACE) as file:
                file.write(str(place).encode())
        return with_model(job.request, self.models.folder / place)

    def restore(self, jobs: Iterable[JobInfo]) -> None:
        """Take up what the running jobs of an earlier server use, and which of them prepares it."""
        for job, folder, place in self._noted(jobs):
            self.models.use(job.job_id, place.parts[0], is_making=(folder / _MADE).exists())

    def keep(self, jobs: Iterable[JobInfo]) -> None:
        """Keep what the running jobs of other servers use. What they prepare is not waited for: their machine may be out of
        reach."""
        for job, _, place in self._noted(jobs):
            self.models.use(job.job_id, place.parts[0])

    def _noted(self, jobs: Iterable[JobInfo]) -> Iterator[tuple[JobInfo, Path, PurePath]]:
        """Yield those of the jobs that have a prepared model, with their folders and its place."""
        for job in (job for job in jobs if job.request.preparation):
            folder = self._folder(job, job.attempt)
            with suppress(OSError):  # what can't be told at present is told by the job itself, when it goes on
                if (place := _read_place(folder)) is not None:
                    yield job, folder, place

    def end(self, job: JobInfo, grace_seconds: float) -> None:
        """End what is left of the preparation of a job's latest attempt. Raises RunFailedError, OSError."""
        if job.request.preparation and (handle := self.executor.find(self.key_of(job))) is not None:
            try:
                handle.end(grace_seconds)
            finally:
                handle.close()

    def key_of(self, job: JobInfo) -> RunKey:
        """Return which run prepares the model of a job's latest attempt."""
        folder = self._folder(job, job.attempt)
        return RunKey(f"{job.job_id}-preparation", job.attempt, folder, (), self.accounts.of(job.owner))

    def _folder(self, job: JobInfo, attempt: int) -> Path:
        return preparation_dir(attempt_dir(self.data_dir, job.job_id, attempt))

    def _place(self, job: JobInfo, working_dir: Path) -> PurePath:
        """Return where the model belongs, as its folder is now."""
        model, preparation = self.source_of(job, working_dir)
        account = self.accounts.of(job.owner)
        is_there = os.path.isdir(model)  # noqa: PTH112 - which raises nothing, whatever the text
        fingerprint = preparation.fingerprint(model, account and account.uid) if is_there else None
        if fingerprint is None:
            problem = "has too many files, or some can't be read" if is_there else "is no folder any more"
            raise RunFailedError(FAILED, f"preparation {preparation.name}: the model {model} {problem}")
        return place_of(fingerprint, model)

    def source_of(self, job: JobInfo, working_dir: Path) -> tuple[Path, Preparation]:
        """Return what is prepared, and how. Raises RunFailedError."""
        name, model = job.request.preparation, model_folder(job.request, working_dir)
        if name not in self.preparations or model is None:
            raise RunFailedError(FAILED, f"this server has no preparation {name!r} any more")
        return model, self.preparations[name]


class ModelPreparation:
    """Has the model of one attempt prepared: by a run of its own, or by that of another job. Used by one thread."""

    def __init__(
        self,
        preparing: Preparing,
        job: JobInfo,
        working_dir: Path,
        resources: Resources,
        publish: Callable[[Progress], None],
        *,
        may_have_begun: bool,
    ) -> None:
        self._preparing = preparing
        self._models = preparing.models
        self._job = job
        self._working_dir = working_dir
        self._resources = resources
        self._reports = PhaseReports(job, Progress.PHASE_PREPARING, preparing.clock, publish)
        self._may_have_begun = may_have_begun
        self._key = preparing.key_of(job)
        self._log = LogFollower(self._key.log_path)
        self._handle: RunHandle | None = None
        self._stopwatch: Stopwatch | None = None
        self._is_using = False

    def follow(self, reason_to_stop: Callable[[], _Reason | None]) -> _Reason | None:
        """Wait until the model is there; or return the reason to stop, if there is one before. May be called again.

        Raises RunFailedError and OSError. Unless the run is to go on without this server, call `end` then, as after a reason.
        """
        self.use()
        while (reason := reason_to_stop()) is None:
            making = self._models.next_step(self._job.job_id)
            if making is None:
                return None
            self._reports.look(self._last_output_at)
            if making.job_id == self._job.job_id:
                self._look_at_run()
            else:
                making.wait(_LOOK_SECONDS)
        return reason

    def use(self) -> None:
        """Keep the model from being removed until `close`. May be called again. Raises RunFailedError, OSError."""
        if not self._is_using:
            self._models.use(self._job.job_id, self._place().parts[0])
            self._is_using = True

    def end(self, grace_seconds: float) -> None:
        """End the run, if it has one, and drop what it has made. Raises RunFailedError, OSError."""
        try:
            if (handle := self._find()) is not None:
                handle.end(grace_seconds)
        except RunFailedError as error:
            self._preparing.executor.quarantine(self._key, (), f"job {self._job.job_id}: {error.message}")
            raise
        remove_tree(self._made)  # what can't be removed goes with the job

    def close(self) -> None:
        """Release the handle, and the model: it may be removed from then on."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None
        self._models.release(self._job.job_id)

    @property
    def _made(self) -> Path:
        return self._key.attempt_dir / _MADE

    def _place(self) -> PurePath:
        place = _read_place(self._key.attempt_dir)
        if place is None:
            raise RunFailedError("RUN_LOST", "it is not known any more where the prepared model is")
        return place

    def _look_at_run(self) -> None:
        """Start the run, unless it has begun, and wait for it a moment. Once it has ended, take over what it has made."""
        model, preparation = self._preparing.source_of(self._job, self._working_dir)
        stopwatch = self._stopwatch = self._stopwatch or Stopwatch(self._preparing.clock, self._began_ns())
        handle = self._handle = self._find() or self._start(model, preparation)
        if not handle.wait(_LOOK_SECONDS):
            self._require_within_bounds(preparation, stopwatch)
            return
        handle.end(0.0)
        self._judge(handle, model, preparation)
        self._keep(preparation)

    def _find(self) -> RunHandle | None:
        """Take hold of the run if it has begun, under an earlier server or in an earlier try."""
        if self._handle is None and self._may_have_begun:
            self._handle = self._preparing.executor.find(self._key)
        return self._handle

    def _start(self, model: Path, preparation: Preparation) -> RunHandle:
        output = self._made.joinpath(*self._place().parts[1:])
        step = Run(self._job.job_id, self._job.attempt, self._job.request, self._key.attempt_dir, output, num_gpus=0)
        self._may_have_begun = True
        try:
            make_private_folder(output)
            self._preparing.accounts.hand_over(self._key.account, [step])
            self._preparing.executor.make_room(self._key, 1)
            return self._preparing.executor.start(self._key, preparation.command(model, output), self._resources)
        except OSError as error:
            require_no_shortage(error)
            self._fail(preparation, f"could not be started: {error.strerror or error}")
        except RunFailedError as error:
            self._fail(preparation, error.message)

    def _require_within_bounds(self, preparation: Preparation, stopwatch: Stopwatch) -> None:
        """Fail where the run takes too long or prints too much."""
        if stopwatch.elapsed_ns() > preparation.timeout_seconds * 1e9:
            self._fail(preparation, f"took longer than its timeout of {preparation.timeout_seconds:.15g} seconds")
        if 0 < self._preparing.max_log_bytes < self._log.size():
            self._fail(preparation, f"its log exceeded the {self._preparing.max_log_bytes} bytes that this server allows")

    def _began_ns(self) -> int:
        """Return when the run began, perhaps under an earlier server."""
        try:
            return self._made.stat().st_mtime_ns
        except FileNotFoundError:  # it begins now, or has removed it, and will fail
            return self._preparing.clock.now().ToNanoseconds()

    def _judge(self, handle: RunHandle, model: Path, preparation: Preparation) -> None:
        """Raise RunFailedError unless the run has left a whole model, made of what is still there."""
        try:
            exit_status = handle.exit_status()
        except RunFailedError as error:
            self._fail(preparation, error.message)
        if exit_status.code is None and exit_status.signal is None:
            raise RunFailedError("RUN_LOST", "the preparation has left no exit status: it, or what records its end, was killed")
        if exit_status.code != 0:
            self._fail(preparation, _problem(exit_status, self._judged_lines()), exit_status)
        if not _has_files(self._made.joinpath(*self._place().parts[1:])):
            self._fail(preparation, "left no files")
        account = self._key.account
        if preparation.fingerprint(model, account and account.uid) != self._place().parts[0]:
            changed = f"the model {model}, or what prepares it, has changed meanwhile"
            self._fail(preparation, f"{changed}: submit the job again once it is complete")

    def _judged_lines(self) -> list[str]:
        return read_tail(self._key.log_path, _JUDGED_LINES, _JUDGED_BYTES)

    def _keep(self, preparation: Preparation) -> None:
        try:
            self._models.keep(self._job.job_id, self._made)
        except OSError as error:
            require_no_shortage(error)
            self._fail(preparation, f"what it made can't be kept: {error.strerror or error}")

    def _fail(self, preparation: Preparation, message: str, exit_status: Exit = _UNKNOWN) -> NoReturn:
        """Fail, and all who wait for the same with it."""
        error = RunFailedError(FAILED, shorten(f"preparation {preparation.name}: {message}"))
        tail = read_tail(self._key.log_path)
        error.job_error.MergeFrom(JobError(exit_code=int32(exit_status.code), signal=int32(exit_status.signal), log_tail=tail))
        self._models.fail(self._job.job_id, error)
        raise error

    def _last_output_at(self) -> Timestamp | None:
        last_output_ns = self._log.last_output_ns()
        return None if last_output_ns is None else timestamp_of_ns(last_output_ns)


def _read_place(folder: Path) -> PurePath | None:
    """Return what `place` says; None if there is none. Raises OSError for a shortage."""
    place = PurePath((read_note(folder, _PLACE, _MAX_PLACE_BYTES) or b"").decode(errors="replace"))
    return place if place.parts and not place.is_absolute() and ".." not in place.parts else None


def _has_files(folder: Path) -> bool:
    """Return whether there is anything in a folder."""
    try:
        with scan_folder(folder) as entries:
            return any(True for _ in entries)
    except OSError as error:
        require_no_shortage(error)
        return False


def _problem(exit_status: Exit, log_tail: list[str]) -> str:
    """Say why it failed."""
    end = f"ended by signal {exit_status.signal}" if exit_status.code is None else f"exited with code {exit_status.code}"
    words = failure_or_last_line(log_tail)
    return f"{end}: {words}" if words else f"{end} and wrote nothing"
