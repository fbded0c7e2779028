"""One thread that speaks with Slurm for all runs: it submits them, in order, and asks what has become of them.

What it has learned is a snapshot, which runs read without waiting. While Slurm does not answer, runs that are to be submitted
wait for it, and those that run go on: that they have ended shows on the shared disk.

Threads: `_condition` guards what is shared between the thread and the runs.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from evalrpc.clock import Clock
from evalrpc.errors import RunFailedError
from evalrpc.executors.slurm import states
from evalrpc.executors.slurm.commands import SlurmCommands, SlurmJob, SlurmUnavailableError

_RETRY_SECONDS: Final = 5.0
_NOTICE_SECONDS: Final = 20.0
"""How long Slurm may take to notice that a run has ended: a node reports it again after 15 s if the controller was away."""

_BY_WEIGHT: Final = ((3, states.RUNNING), (2, {states.ENDING}), (1, states.WAITING))

_log = logging.getLogger(__name__)


class Snapshot(NamedTuple):
    """What Slurm knew at a time."""

    asked_seconds: float
    """When it was asked, on the monotonic clock."""
    jobs: Mapping[str, SlurmJob]
    """Of each name the job that matters most: one that runs, else one that waits, else the latest."""


NEVER_ASKED: Final = Snapshot(float("-inf"), {})


@dataclass
class Submission:
    """A run that is to be submitted, or was."""

    name: str
    options: Sequence[str]
    script: str
    done: threading.Event = field(default_factory=threading.Event)
    """Set once Slurm has taken it or refused it, or it is to be submitted no more."""
    submitted_seconds: float = float("-inf")
    """When Slurm took it, on the monotonic clock."""
    failure: RunFailedError | None = None
    """Why Slurm refused it."""
    problem: str = ""
    """Why Slurm could not be asked the last time."""
    was_tried: bool = False
    """Whether it was asked, so that it may have taken it."""

    replaces: str | None = None
    """The id of the job in Slurm that did not begin, and that this is submitted instead of; empty if Slurm has forgotten it."""

    def again(self, job_id: str = "") -> "Submission":
        """Return what to submit once more, instead of a job that did not begin."""
        return replace(self, done=threading.Event(), was_tried=True, replaces=job_id)


class Cluster:
    """Speaks with one Slurm cluster. May be used from several threads."""

    def __init__(self, commands: SlurmCommands, clock: Clock, poll_seconds: float) -> None:
        self.commands: Final = commands
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._condition = threading.Condition()
        self._submissions: list[Submission] = []
        self._unwanted: list[str] = []
        self._ended: dict[str, float] = {}
        self._watched = 0
        self._snapshot = NEVER_ASKED
        self._closed = False
        self._thread: threading.Thread | None = None
        self._asking = threading.Lock()  # held while Slurm is asked, so that many who ask at once cost one question

    @property
    def snapshot(self) -> Snapshot:
        """What was learned last. Never blocks, unless this is closed: then nobody else asks Slurm."""
        if self._closed:
            with suppress(SlurmUnavailableError):
                return self.ask()
        return self._snapshot

    def start(self) -> None:
        """Start the thread, unless it runs. Raises OSError."""
        with self._condition:
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._work, name="slurm", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    raise OSError(str(error)) from error
                self._thread = thread

    def close(self) -> None:
        """Stop the thread. What was not submitted yet is submitted by the next server."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def submit(self, submission: Submission) -> None:
        """Have a run submitted, as soon as Slurm takes it."""
        with self._condition:
            self._submissions.append(submission)
            self._condition.notify_all()

    def submitted_earlier(self, name: str, options: Sequence[str] = (), script: str = "") -> Submission:
        """Return what an earlier server, or another one, has submitted. Without `options`, it can't be submitted again. What
        Slurm was asked before now may be older than that."""
        submission = Submission(name, options, script, was_tried=True, submitted_seconds=self._clock.monotonic())
        submission.done.set()
        return submission

    def withdraw(self, submission: Submission) -> None:
        """Submit a run no more."""
        with self._condition:
            if submission in self._submissions:
                self._submissions.remove(submission)
                submission.done.set()

    def cancel_soon(self, name: str) -> None:
        """Have the jobs of a name cancelled, which do nothing any more, as soon as Slurm answers."""
        with self._condition:
            if name not in self._unwanted:
                self._unwanted.append(name)
            self._condition.notify_all()

    def note_end(self, name: str) -> None:
        """Note that nothing is left of a run. If Slurm does not notice in a while, its jobs are cancelled."""
        with self._condition:
            self._ended.setdefault(name, self._clock.monotonic())
            self._condition.notify_all()

    def living(self) -> Sequence[str]:
        """Return the names of what waits or runs in Slurm. Raises SlurmUnavailableError."""
        jobs = self.ask().jobs
        with self._condition:
            return [name for name, job in jobs.items() if job.state in states.ALIVE and name not in self._ended]

    def watch(self, change: int) -> None:
        """Note that so many runs more, or less, want to know what becomes of them."""
        with self._condition:
            self._watched += change
            self._condition.notify_all()

    def ask(self) -> Snapshot:
        """Ask Slurm now, and return what it says. Raises SlurmUnavailableError."""
        called_seconds = self._clock.monotonic()
        with self._asking:
            if self._snapshot.asked_seconds < called_seconds:
                asked_seconds = self._clock.monotonic()
                self._snapshot = Snapshot(asked_seconds, _by_name(self.commands.jobs()))
            return self._snapshot

    def _work(self) -> None:
        while not self._closed:
            self._submit_all()
            try:
                self._cancel_all()
                if self._is_poll_due():
                    self._tidy(self.ask())
            except SlurmUnavailableError as error:
                _log.warning("Slurm can't be asked at present: %s", error)
                self._pause(_RETRY_SECONDS)
            with self._condition:
                if not self._closed and not self._submissions and not self._unwanted:
                    self._condition.wait(self._seconds_to_poll() if self._watched or self._ended else None)

    def _tidy(self, snapshot: Snapshot) -> None:
        """Have Slurm cancel what has ended without its notice: a controller that is killed may forget an end. What it has
        noticed need not be remembered."""
        with self._condition:
            for name, ended_seconds in list(self._ended.items()):
                job = snapshot.jobs.get(name)
                if job is not None and job.state in states.ALIVE:
                    if snapshot.asked_seconds >= ended_seconds + _NOTICE_SECONDS and name not in self._unwanted:
                        self._unwanted.append(name)
                elif snapshot.asked_seconds >= ended_seconds:
                    del self._ended[name]

    def _cancel_all(self) -> None:
        while self._unwanted and not self._closed:
            self.commands.cancel(self._unwanted[0])
            with self._condition:
                del self._unwanted[0]

    def _submit_all(self) -> None:
        while not self._closed and (submission := self._next_submission()) is not None:
            try:
                self._submit(submission)
            except SlurmUnavailableError as error:
                self._say_problem(str(error))
                _log.warning("Slurm takes no runs at present: %s", error)
                self._pause(_RETRY_SECONDS)
                continue
            except RunFailedError as error:
                submission.failure = error
            with self._condition:
                if submission in self._submissions:
                    self._submissions.remove(submission)
            submission.done.set()

    def _say_problem(self, problem: str) -> None:
        """Note of all that wait why they do: also of those behind the one that was tried."""
        with self._condition:
            for waiting in self._submissions:
                waiting.problem = problem

    def _next_submission(self) -> Submission | None:
        with self._condition:
            return self._submissions[0] if self._submissions else None

    def _submit(self, submission: Submission) -> None:
        # One whose answer was not heard may be there. That a second one would do nothing does not make it welcome.
        is_there = submission.was_tried and submission.replaces is None and submission.name in self.ask().jobs
        if submission.replaces:
            self.commands.cancel_job(submission.replaces)
        with self._condition:
            if submission.done.is_set():
                return  # withdrawn
            submission.was_tried = True
        if not is_there:
            self.commands.submit(submission.options, submission.script)
        submission.problem = ""
        submission.submitted_seconds = self._clock.monotonic()

    def _is_poll_due(self) -> bool:
        return bool(self._watched or self._ended) and self._seconds_to_poll() <= 0

    def _seconds_to_poll(self) -> float:
        return max(0.0, self._snapshot.asked_seconds + self._poll_seconds - self._clock.monotonic())

    def _pause(self, seconds: float) -> None:
        with self._condition:
            if not self._closed:
                self._condition.wait(seconds)


def _by_name(jobs: Sequence[SlurmJob]) -> Mapping[str, SlurmJob]:
    by_name: dict[str, SlurmJob] = {}
    for job in sorted(jobs, key=_weight):
        by_name[job.name] = job
    return by_name


def _weight(job: SlurmJob) -> tuple[int, int]:
    liveness = next((weight for weight, of_weight in _BY_WEIGHT if job.state in of_weight), 0)
    number = job.id.partition("_")[0]
    return liveness, int(number) if number.isdigit() else 0
