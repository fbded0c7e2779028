"""Options, log and results that lm-eval and lmms-eval share, since the latter is derived from the former."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from evalrpc.config import HarnessSettings
from evalrpc.errors import FieldViolation, RunFailedError
from evalrpc.harnesses.arguments import number_text, plain_arguments
from evalrpc.harnesses.bad_answers import unscored, warn
from evalrpc.harnesses.base import Command, Exit, Preload, Run
from evalrpc.harnesses.failures import check_exit, failed, find_failure, shorten, strip_colours
from evalrpc.harnesses.ignored_settings import ignored_settings
from evalrpc.harnesses.names import device_violations, task_problem
from evalrpc.harnesses.sample_answers import AnswersOfRun, reason_in_log
from evalrpc.results.layout import missing_tasks, read_results, task_configs, unread_results
from evalrpc.v1.jobs_pb2 import GPU_MODE_DATA_PARALLEL, EvaluateRequest, GpuMode, Progress
from evalrpc.v1.results_pb2 import ModelResult

_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_BATCH_SIZE = re.compile(r"auto(:[1-9][0-9]{0,8})?|[1-9][0-9]{0,8}")
_NOT_SAVED = re.compile(r".*(?: - |\] )(?P<error>\w+(?:Error|Exception)\(.*\))")
_SAMPLES_NOT_SAVED: Final = "Could not save sample results"
_LOGGED_ERROR: Final = re.compile(r"\bERROR +\| +(?!lmms_eval\.models\.)[\w.]+:\w+:[0-9]+ - (?P<why>.+)")
"""A line of lmms-eval with an error that is none of its models', whose answers tell: most are of tasks, which score 0 where the
judge of their answers fails."""
_CUT_PROMPT: Final = re.compile(r"\bWARNING +\[(?:lm_eval\.)?models\.\w+:[0-9]+\] (?P<why>.*\b[Tt]runcat(?:ed|ing|ion)\b.*)")
"""A line of lm-eval that says that a model was asked with a part of a question, or of its examples, only."""
_SEEDS: Final = 4
"""How many random generators are seeded: those of Python, NumPy, PyTorch and the choice of examples."""
_MAX_LINE_CHARACTERS: Final = 2000  # matching takes quadratic time
_PHASES: Final = (
    (
        re.compile(r"Verbosity set to|Including path:"),
        (b"Verbosity set to", b"Including path:"),
        Progress.PHASE_STARTING,
    ),
    (
        re.compile(r"Selected Tasks|Running on rank|Building contexts for (?P<task>\S{1,200})"),
        (b"Selected Tasks", b"Running on rank", b"Building contexts for "),
        Progress.PHASE_LOADING,
    ),
    (
        re.compile(r"Running \w+ requests"),
        (b" requests",),
        Progress.PHASE_EVALUATING,
    ),
    (
        re.compile(r"Postprocess(ing|ed)\b|Saving results|bootstrapping for stddev"),
        (b"Postprocess", b"Saving results", b"bootstrapping for stddev"),
        Progress.PHASE_SCORING,
    ),
)
"""How lines say a phase, what each of these lines has, and the phase."""
PROGRESS_WORDS: Final = tuple(word for _, words, _ in _PHASES for word in words)
"""What the lines have that say a phase."""


def violations(request: EvaluateRequest, title: str) -> Iterator[FieldViolation]:
    """Yield what the options can't express. `title` is the harness's display name."""
    if not _MODEL.fullmatch(request.model):
        yield FieldViolation("model", f"must be the name of a model type of {title}: letters, digits, `_`, `.` and `-`")
    for index, task in enumerate(request.tasks):
        if problem := task_problem(task):
            yield FieldViolation(f"tasks[{index}]", problem)
    if request.batch_size and not _BATCH_SIZE.fullmatch(request.batch_size):
        yield FieldViolation("batch_size", "must be a positive number, `auto`, or `auto:N`")
    yield from device_violations(request)


def command(
    settings: HarnessSettings,
    run: Run,
    mode: GpuMode.ValueType,
    preload: Preload,
    options: Iterable[str],
    config_name: str,
    config: bytes,
) -> Command:
    """Build the command line of the program that can be preloaded, with a config file unless that is empty. A run of several
    processes is started by a launcher, and so is never warm."""
    config_path = run.attempt_dir / config_name
    has_launcher = mode == GPU_MODE_DATA_PARALLEL
    return Command(
        argv=(
            *([str(settings.python), *_launcher(run), "-m", preload.module] if has_launcher else preload.program),
            *options,
            *([f"--config={config_path}"] if config else []),
            *settings.args,
        ),
        env=settings.env,
        files={config_path: config} if config else {},
        preload=preload if settings.warm == "auto" and not has_launcher else None,
        cwd=settings.working_dir,
        watched_dirs=settings.include_path,
    )


def options(request: EvaluateRequest) -> Iterator[str]:
    """Yield the options that the request sets, apart from its names and arguments."""
    if request.HasField("num_fewshot"):
        yield f"--num_fewshot={request.num_fewshot}"
    if request.HasField("limit"):
        yield f"--limit={number_text(request.limit)}"
    if request.batch_size:
        yield f"--batch_size={request.batch_size}"
    if request.device:
        yield f"--device={request.device}"
    if request.log_samples or not request.HasField("log_samples"):
        yield "--log_samples"
    if request.predict_only:
        yield "--predict_only"


def task_args(request: EvaluateRequest) -> dict[str, Any]:
    """Return the arguments of the tasks, as entries of the config file."""
    given = plain_arguments(request.task_args)
    return {**given, "seed": [given["seed"]] * _SEEDS} if "seed" in given else given


def _launcher(run: Run) -> Iterator[str]:
    """Yield the arguments that start one process per GPU. Port 0 picks a free one, so concurrent runs don't collide."""
    yield from ("-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={run.num_gpus}", "--num_machines=1")
    yield from ("--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0")


def read_phase(line: str, progress: Progress) -> None:
    """Advance to the phase that the line indicates, never back: an answer in the log may say anything."""
    for pattern, _, phase in _PHASES:
        match = pattern.search(line)
        if match and phase >= progress.phase:
            progress.phase = phase
            progress.current_task = match.groupdict().get("task") or ""
            if phase == Progress.PHASE_SCORING:
                progress.ClearField("rate_per_second")
                progress.ClearField("time_left")
            return


def read_good_results(run: Run, exit_status: Exit, log_tail: list[str], title: str) -> Mapping[str, ModelResult]:
    """Read and verify the results: exit code 0 proves nothing. Raises RunFailedError."""
    check_exit(exit_status, log_tail)
    results = read_results(run.output_dir, run.request.model)
    if not results:
        raise _no_results(run, log_tail, title)
    _check_tasks(results, run)
    answers = AnswersOfRun(run.output_dir, reason_in_log(log_tail))
    warn(results, ignored_settings(results.values(), run.request))
    warn(results, _ignored_gen_kwargs(results, run))
    warn(results, unscored(results.values()))
    warn(results, answers.warnings(results, run.request))
    warn(results, _said_in_log(_plain(log_tail)))
    return results


def _said_in_log(lines: Sequence[str]) -> Iterator[str]:
    """Yield what the end of the log says against the results: the program goes on to them all the same."""
    if errors := [match["why"] for line in lines if (match := _LOGGED_ERROR.search(line))]:
        yield shorten(f"errors at the end of the log: {len(errors)}, the first: {errors[0]}")
    if cut := [match["why"] for line in lines if (match := _CUT_PROMPT.search(line))]:
        yield shorten(f"some of what the model was asked was cut off: {cut[-1]}")
    if any(_SAMPLES_NOT_SAVED in line for line in lines):
        yield shorten(f"samples are missing, since they could not be saved: {_not_saved(lines) or 'the log does not say why'}")


def _not_saved(lines: Sequence[str]) -> str:
    """Return the last error that kept a file from being saved; empty if the log has none."""
    return next((match["error"] for line in reversed(lines) if (match := _NOT_SAVED.fullmatch(line))), "")


def _plain(log_tail: Iterable[str]) -> list[str]:
    """Return the end of a log without colours, and of each line the part in which something is looked for."""
    return [strip_colours(line)[-_MAX_LINE_CHARACTERS:] for line in log_tail]


def _no_results(run: Run, log_tail: list[str], title: str) -> RunFailedError:
    if failure := find_failure(log_tail):
        return failed(failure)
    if error := _not_saved(_plain(log_tail)):
        why = f"could not save them: {error}"
    elif name := unread_results(run.output_dir):
        is_deep = name.count("/") > 1
        problem = "lies deeper than known versions put" if is_deep else "is not named as known versions name"
        why = f"left {name}, which {problem} their results"
    else:
        why = "left none, and its log does not say why"
    return RunFailedError("RESULTS_MISSING", shorten(f"no results: {title} {why}"))


def _ignored_gen_kwargs(results: Mapping[str, ModelResult], run: Run) -> Iterator[str]:
    """Yield a warning if no task has the model generate, for which alone `gen_kwargs` are."""
    if not run.request.gen_kwargs.fields:
        return
    configs = [config for result in results.values() for config in task_configs(result, run.output_dir).values()]
    kinds = sorted({str(config.get("output_type", "generate_until")) for config in configs})
    if kinds and not any("generate" in kind for kind in kinds):
        yield f"gen_kwargs: none of the tasks takes notice, since their output_type is {' or '.join(kinds)}"


def _check_tasks(results: Mapping[str, ModelResult], run: Run) -> None:
    tasks = run.request.tasks
    missing = set(tasks).intersection(*(missing_tasks(result, tasks, run.output_dir) for result in results.values()))
    if missing:
        raise RunFailedError("TASKS_MISSING", shorten(f"there are results, but none of: {', '.join(sorted(missing))}"))
