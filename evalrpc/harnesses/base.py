"""The contract of a harness: a request becomes a command, a log line becomes progress, an output folder becomes results.

A harness is pure. It starts no process, keeps no state between calls, and may be called from several threads at once. It writes
nothing, except that it may convert results in another layout to files beside them in the output folder.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, runtime_checkable

from evalrpc.errors import FieldViolation
from evalrpc.files.private import PRIVATE_UMASK
from evalrpc.v1.catalog_pb2 import HarnessInfo
from evalrpc.v1.jobs_pb2 import EvaluateRequest, GpuMode, Progress
from evalrpc.v1.results_pb2 import ModelResult


@dataclass(frozen=True)
class Run:
    """One attempt of a job, as a harness sees it."""

    job_id: str
    attempt: int
    request: EvaluateRequest
    attempt_dir: Path
    """A folder for this attempt only, on the server's data disk, for files that the harness needs besides its output."""
    output_dir: Path
    """A folder for this attempt only, empty when the run starts, where the harness leaves its results."""
    num_gpus: int
    """How many GPUs it holds. It sees no others, and numbers them from 0."""


class Preload(NamedTuple):
    """What runs of a harness have in common, so that a process that has it in memory can fork them (a warm run)."""

    harness: str
    """The name of the harness."""
    program: tuple[str, ...]
    """How the command lines of such runs begin: an interpreter, and what it runs."""
    module: str
    """What that is, as `python -m` takes it."""
    modules: tuple[str, ...]
    """What to import, by name. All but the first may be missing, in some version."""
    script: Path | None = None
    """A file with a function `preload`, which the harness's interpreter calls after the imports. It returns folders: once a
    file below them changes, what it has prepared is out of date. A function `prepare`, if there is one, is called before."""


@dataclass(frozen=True)
class Command:
    """What an executor runs. No shell is involved."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment that the executor builds."""
    files: Mapping[Path, bytes] = field(default_factory=dict)
    """Files to write before it starts, by absolute path."""
    cwd: Path | None = None
    """The folder to run in. None: the server's own."""
    further_steps: tuple[tuple[str, ...], ...] = ()
    """Command lines to run after `argv`, in sequence, even if earlier ones fail. Not set by harnesses."""
    umask: int = PRIVATE_UMASK
    """The permissions that its files must not have. Not set by harnesses."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Further variables, which override `env` and are secrets: never stored, logged or shown. Not set by harnesses."""
    preload: Preload | None = field(default=None, compare=False)
    """How the run can be warm. None: not at all."""
    watched_dirs: tuple[Path, ...] = ()
    """Folders whose files the outcome depends on, besides the installation. It may be cached until they change."""


@dataclass(frozen=True)
class Exit:
    """How a run ended: an exit code or a signal; neither if nobody observed its end, so that only the results can tell."""

    code: int | None = None
    signal: int | None = None


@runtime_checkable
class StepsHarness(Protocol):
    """Optional interface of a harness that builds many commands at less cost than one by one."""

    def commands(self, runs: Iterable[Run]) -> Sequence[Command]:
        """Build what `Harness.command` would for each run. Raises what that raises."""


@runtime_checkable
class ParallelHarness(Protocol):
    """Optional interface of a harness that knows more than one way to share the GPUs of a run among processes."""

    def gpu_mode(self, run: Run) -> GpuMode.ValueType:
        """Return how the processes of a run share its GPUs: as the request says, or as suits its model."""


@runtime_checkable
class WarningHarness(Protocol):
    """Optional interface of a harness that knows what is doubtful about a request which it takes."""

    def warnings(self, request: EvaluateRequest, /) -> Iterable[str]:
        """Yield what whoever submits should know, each in a sentence. `violations` have found nothing."""


@runtime_checkable
class TaskArgsHarness(Protocol):
    """Optional interface of a harness that takes `task_args`. For any other, a request with some is refused."""

    def unknown_task_args(self, request: EvaluateRequest, /) -> Iterable[FieldViolation]:
        """Yield the arguments that none of the tasks takes, as far as only the operator's folders tell: what can be told
        without a look at them is among `Harness.violations`, which have found nothing. Called on a thread that may block."""


class ServedEndpoint(NamedTuple):
    """Where a model is served, over OpenAI's API."""

    url: str
    """The base of all addresses, which ends in `/v1`."""
    name: str
    """What the model is asked for by."""
    model: str
    """What the server has loaded, a folder or the name of a repository: for a tokenizer."""
    api: tuple[str, ...]
    """What the server answers, as `api` of an engine says it."""
    open_url: str = ""
    """The same base without what makes `url` a secret, for a command line, which others on the machine may see. Requests to it
    need `key` as bearer token."""
    key: str = ""
    """A secret that ends with the attempt: for a file, or the environment."""
    is_own_name: bool = False
    """Whether the model is known by this name elsewhere too, such as a vendor's, so that programs may treat it by its name."""


class ServedNeeds(NamedTuple):
    """What a harness has to have its own way where it asks a server for its answers."""

    api: frozenset[str]
    """Those of which the server must answer one."""
    arguments: frozenset[str] = frozenset()
    """The arguments of models that say where the server is and what it serves. Requests can't set them."""
    variables: tuple[str, ...] = ()
    """The environment variables in which its program looks for the server's address; none where arguments say it."""
    asks_again: bool = False
    """Whether its program never takes a connection that breaks off for an answer: it asks again, or fails. If not, an attempt
    during which the gateway was started again is made anew."""


@runtime_checkable
class ServedHarness(Protocol):
    """Optional interface of a harness that can ask a server for the model's answers, and load none itself."""

    served_needs: ServedNeeds
    """What does not depend on the request."""

    def with_served_model(self, request: EvaluateRequest, served: ServedEndpoint) -> EvaluateRequest:
        """Return a request for the same evaluation, whose `model` and arguments say where the model is served; it has no
        `served_model`. The arguments that the request has already stay, but for those of `served_needs`.

        `Harness.violations` of what is returned tell which requests can't be evaluated so.
        """


@runtime_checkable
class JudgedHarness(Protocol):
    """Optional interface of a harness whose tasks can have another model judge the answers."""

    judge_api: frozenset[str]
    """What a judge is asked by: its server must answer one of these."""

    def judge_variables(self, judge: ServedEndpoint) -> Mapping[str, str]:
        """Return the environment variables by which the program finds the judge. Those of the model's own server must not be
        among them. What else the program is to be told, `Harness.command` does, since the request has the judge's name."""


@runtime_checkable
class TaskReporter(Protocol):
    """Optional interface of a harness whose program leaves each task's results as soon as the task has finished."""

    def read_finished(self, run: Run, name: str) -> Mapping[str, ModelResult]:
        """Read the results of finished tasks from a file directly in the output folder, during the run or after it has failed.
        Called for every file that is new or has changed, so it must be fast however many samples there are.

        A file that can't be read counts as unfinished: the program may still be writing it.
        """


@runtime_checkable
class ProgressWords(Protocol):
    """Optional interface of a harness to whose progress more counts than lines with `3/10` and the like."""

    progress_words: Sequence[bytes]
    """What such lines have. Of a log that has very many lines between two looks, `read_progress` gets the last ones, and before
    them only the last few with each of these words, or with a count."""


class SampleRow(NamedTuple):
    """One sample of a file."""

    values: Mapping[str, object]
    """Its values, under the names that docs/harnesses.md gives."""
    end: int
    """The offset from which the next samples can be read."""
    is_too_large: bool = False
    """Whether it is larger than any row that is read, and so has no values."""


@runtime_checkable
class SampleReader(Protocol):
    """Optional interface of a harness whose samples files have their own format and are read in place.

    Such a file holds the samples of the tasks whose aggregate file it also is. Files named as in `evalrpc.results.layout` have
    a JSON object on every line, and are read without the harness.
    """

    def read_samples(self, file: BinaryIO, offset: int) -> Iterator[SampleRow]:
        """Yield the samples of a file from an offset on: 0, or the `end` of a row. So a page costs only its own rows.

        The file is open for this call only. Raises ValueError or RecursionError where it can't be parsed any further, and
        OSError.
        """


class MediaLimits(NamedTuple):
    """What the media of documents may take."""

    max_bytes: int
    """The size of one medium."""
    max_total_bytes: int
    """The size of all together."""
    memory_bytes: int
    """The memory of the process that finds them."""
    processor_seconds: int
    """How long that may use a processor."""


@runtime_checkable
class MediaHarness(Protocol):
    """Optional interface of a harness whose samples lack what their documents show."""

    def media_command(self, request: EvaluateRequest, task: str, doc_ids: Sequence[int], limits: MediaLimits) -> Command:
        """Build the command that prints what documents of a task show, as its last line: `{"documents": {ID: [MEDIUM, ...]},
        "has_media": true}`. A medium is `{"data": BASE64}`, `{"path": FILE}` or `{"problem": WHY}`. `has_media` false: this
        task shows nothing at all. Documents after the first may be left out where they are too large together."""


@runtime_checkable
class Harness(Protocol):
    """What the scheduler and the service need from a harness."""

    name: str
    """The name by which clients ask for it."""
    kind: str
    """Which implementation it is, such as `lmms-eval` or `command`."""

    def info(self) -> HarnessInfo:
        """Report what is installed. Reads the disk but starts nothing; never raises for what is missing."""

    def violations(self, request: EvaluateRequest) -> Iterable[FieldViolation]:
        """Yield the fields of a well-formed request that this harness can't accept. Paths begin at the request, such as
        `tasks[1]`."""

    def command(self, run: Run) -> Command:
        """Build the command line. Equal runs have equal commands, which is how identical evaluations are recognised. May read
        the operator's folders, so it is called on a thread that may block.

        Raises RunFailedError for a request without violations only if those folders lack what it asks for.
        """

    def catalog_command(self) -> Command | None:
        """Build the command that prints, as its last line, `{"tasks": [...], "models": [...]}`: the names that the installed
        harness knows. None if it can't list them."""

    def read_progress(self, line: str, progress: Progress) -> bool:
        """Apply one line of the log (split at newline or carriage return, without it) to `progress`; return whether that
        changed anything. Lines come in order; most have no effect. Must not raise: a line at which it does is ignored."""

    def read_results(self, run: Run, exit_status: Exit, log_tail: list[str]) -> Mapping[str, ModelResult]:
        """Read what a finished run left. `log_tail` is the end of the log, a few hundred lines, without colour codes.

        Raises RunFailedError, with a reason and one readable line, unless the run really succeeded: exit codes alone can't be
        trusted. An OSError means a temporary resource shortage of the server, such as descriptors: the call is retried for some
        seconds. Large results are read in a separate process (`evalrpc.scheduling.results_reader`).
        """
