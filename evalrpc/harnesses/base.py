"""The contract of a harness: a request becomes a command, a log line becomes progress, an output folder becomes results.

A harness is pure. It starts no process, keeps no state between calls, and may be called from several threads at once. It writes
nothing but, where the results come in a layout of their own, files beside them in the output folder.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, runtime_checkable

from evalrpc.errors import FieldViolation
from evalrpc.files.private import PRIVATE_UMASK
from evalrpc.v1.evaluation_service_pb2 import HarnessInfo
from evalrpc.v1.job_pb2 import EvaluateRequest, ModelResult, Progress


@dataclass(frozen=True)
class Run:
    """One attempt of a job, as a harness sees it."""

    job_id: str
    attempt: int
    request: EvaluateRequest
    attempt_dir: Path
    """A folder of this attempt alone, on the server's own data disk: for files that the harness needs beside its output."""
    output_dir: Path
    """A folder of this attempt alone, empty when the run starts, in which the harness leaves its results."""
    gpus: tuple[str, ...]
    """The GPUs that it holds. The executor sets CUDA_VISIBLE_DEVICES from them; within the run they count from 0."""


@dataclass(frozen=True)
class Command:
    """What an executor is to run. No shell is involved."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment that the executor builds."""
    files: Mapping[Path, bytes] = field(default_factory=dict)
    """Files to write before it starts, by absolute path."""
    cwd: Path | None = None
    """The folder to run in. None: the server's own."""
    further_steps: tuple[tuple[str, ...], ...] = ()
    """Command lines to run after `argv`, one after the other, whatever became of those before. No harness sets it."""
    umask: int = PRIVATE_UMASK
    """The rights that what it makes must not have. No harness sets it."""
    watched_dirs: tuple[Path, ...] = ()
    """Folders on whose files the outcome depends, besides the installation. It may be remembered until they change."""


@dataclass(frozen=True)
class Exit:
    """How a run ended: an exit code or a signal; neither where nobody could see it end, so that only the results can tell."""

    code: int | None = None
    signal: int | None = None


@runtime_checkable
class StepsHarness(Protocol):
    """What a harness also is if it can build many commands at less cost than one by one."""

    def commands(self, runs: Iterable[Run]) -> Sequence[Command]:
        """Build what `Harness.command` would for each run. Raises what that raises."""


@runtime_checkable
class TaskReporter(Protocol):
    """What a harness also is if its program leaves the results of each task as soon as the task has finished."""

    def read_finished(self, run: Run, name: str) -> Mapping[str, ModelResult]:
        """Read the results of the tasks that have finished, as a file right in the output folder says, while the run goes on or
        after it has failed. Called for every file when it has come or changed, so it must be quick however many samples there
        are.

        What can't be read has not finished: it may just be being written.
        """


class SampleRow(NamedTuple):
    """One sample of a file."""

    values: Mapping[str, object]
    """What is known of it, under the names that docs/harnesses.md gives."""
    end: int
    """The offset from which those after it can be read."""


@runtime_checkable
class SampleReader(Protocol):
    """What a harness also is if its results name files of samples in a format of its own, which are read where they lie.

    Such a file is of the tasks whose aggregate file it is too. Others, with names as in `evalrpc.results.layout`, have a JSON
    object on every line, and no harness is asked to read them.
    """

    def read_samples(self, file: BinaryIO, offset: int) -> Iterator[SampleRow]:
        """Yield the samples of a file from an offset on: 0, or the `end` of a row. So a page costs as much as its own rows.

        The file is open for this call alone. Raises ValueError or RecursionError where it can't be understood from there on,
        and OSError.
        """


@runtime_checkable
class Harness(Protocol):
    """What the scheduler and the service need of a harness."""

    name: str
    """The name by which clients ask for it."""
    kind: str
    """Which implementation it is, such as `lmms-eval` or `command`."""

    def info(self) -> HarnessInfo:
        """Say what is installed. Reads the disk but starts nothing; never raises for what is missing."""

    def violations(self, request: EvaluateRequest) -> Iterable[FieldViolation]:
        """Yield what this harness can't take of a request that is well-formed as such. Paths begin at the request, such as
        `tasks[1]`."""

    def command(self, run: Run) -> Command:
        """Build the command line. It is equal for equal runs, and so tells whether two evaluations are identical. May read the
        operator's folders, so it is called on a thread that may block.

        Raises RunFailedError for a request without violations only where those folders don't hold what it asks for.
        """

    def catalog_command(self) -> Command | None:
        """Build the command that prints, as its last line, `{"tasks": [...], "models": [...]}`: the names that the installed
        harness knows. None: it can't tell."""

    def read_progress(self, line: str, progress: Progress) -> bool:
        """Take one line of the log (parted by newline or carriage return, without it) into `progress`; tell whether it
        changed anything. Lines come in order; most say nothing. Raises nothing: a line at which it does says nothing."""

    def read_results(self, run: Run, exit_status: Exit, log_tail: list[str]) -> Mapping[str, ModelResult]:
        """Read what a finished run left. `log_tail` is the end of the log, some hundred lines, without colour codes.

        Raises RunFailedError, with a reason and one readable line, unless the run really succeeded: exit codes can't be
        trusted alone. An OSError means that the server lacks something at present, such as descriptors: it is called again for
        some seconds. Where the run left much, it is called in a process of its own (`evalrpc.scheduling.results_reader`).
        """
