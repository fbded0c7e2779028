"""inspect-ai (UK AISI's harness), driven through its command line.

A client requests a task by its name, never by a file; the task is looked up in the operator's `include_path`. `model_args`
become arguments of inspect-ai's model provider, so a client is trusted as much as with lmms-eval's.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from evalrpc.config import HarnessSettings
from evalrpc.config.engines import CHAT
from evalrpc.errors import FieldViolation, RunFailedError
from evalrpc.harnesses import arguments
from evalrpc.harnesses.arguments import plain_arguments
from evalrpc.harnesses.bad_answers import require_answers, unscored
from evalrpc.harnesses.base import Command, Exit, Preload, Run, SampleRow, ServedEndpoint, ServedNeeds
from evalrpc.harnesses.failures import check_exit, failed, find_failure, shorten, strip_colours
from evalrpc.harnesses.ignored_settings import ignored_settings
from evalrpc.harnesses.inspect_ai import task_arguments
from evalrpc.harnesses.inspect_ai.logs import (
    ERROR,
    SUCCESS,
    Log,
    bad_samples,
    is_empty,
    read_finished_log,
    read_logs,
    read_samples,
    result_of_logs,
)
from evalrpc.harnesses.inspect_ai.tasks import task_files, task_functions
from evalrpc.harnesses.installation import Package, catalog_command, describe, installed_modules
from evalrpc.harnesses.names import device_violations, task_problem
from evalrpc.harnesses.progress_bars import Bar, advance
from evalrpc.harnesses.served import API_KEY, pointed_at
from evalrpc.jobs.served_models import model_name
from evalrpc.v1.catalog_pb2 import HarnessInfo
from evalrpc.v1.jobs_pb2 import EvaluateRequest, Progress
from evalrpc.v1.results_pb2 import ModelResult

KIND: Final = "inspect-ai"

_PACKAGE: Final = Package(title="inspect-ai", name="inspect_ai", oldest="0.3.188")
_ENVIRONMENT: Final = {"INSPECT_EVAL_CTL_SERVER": "false"}
"""No server to control the run. Versions that have none know the variable as little as they would know the option."""
_MODULES: Final = (
    "inspect_ai.__main__",
    "inspect_ai._eval.eval",
    "inspect_ai._cli._scanner",
    "inspect_ai._control.config_record",
    "inspect_ai._control.scoring",
    "inspect_ai._display.plain.display",
    "inspect_ai.agent._acp._client_registry",
    "inspect_ai.agent._acp.server",
    "inspect_ai.agent._acp.session_router",
    "inspect_ai.agent._acp.transport_live",
    "inspect_ai.hooks._startup",
    "inspect_ai.model._openai_responses",
    "inspect_ai.model._providers._openai_computer_use",
    "inspect_ai.model._providers.none",
    "inspect_ai.model._providers.providers",
    "inspect_ai.solver._transcript",
    "anyio._backends._asyncio",
    "fsspec.implementations.chained",
    "numpy",
    "openai.lib.streaming.chat",
    "openai.types.responses",
    "opentelemetry.trace",
    "rich._emoji_codes",
    "rich.markdown",
)
"""What a run of any model imports by and by."""
_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_:.@+-]+)+")
_BATCH_SIZE = re.compile(r"auto|[1-9][0-9]{0,8}")
_MAX_TASK_BYTES: Final = 200  # it becomes a file's name, with a date before and a suffix after it
_SERVED_MAX_RETRIES: Final = 10
"""Of one question. inspect-ai itself would ask for ever, where a server never answers it."""
_JUDGE_SERVICE: Final = "evalrpc-judge"
_RESERVED_ARGUMENTS: Final = ("config", "default", "memoize", "model", "required", "role")
_STATUS_LINE = re.compile(
    r"\bSteps: +(?P<done>[0-9]{1,15})/(?P<steps>[0-9]{1,15}) +[0-9]+% \| Samples: +[0-9]+/ *(?P<samples>[0-9]{1,15})\b"
)
_TASK_LINE = re.compile(r"(?P<task>\w.{0,200}?) \((?P<samples>[0-9,]{1,15})(?: x (?P<epochs>[0-9]{1,6}))? samples?\)")
_CATALOG_SCRIPT: Final = """
import json, pathlib, sys
from inspect_ai import list_tasks
from inspect_ai._util.registry import registry_find, registry_info
import inspect_ai.model._providers.providers
tasks = [task for folder in json.loads(sys.argv[1]) for task in list_tasks(root_dir=pathlib.Path(folder))]
models = [registry_info(model).name for model in registry_find(lambda info: info.type == "modelapi")]
print(json.dumps({"tasks": [task.name for task in tasks], "models": [name.rpartition("/")[2] for name in models]}))
"""


class InspectHarness:
    """Runs `python -m inspect_ai eval` in the environment that the operator configured."""

    kind = KIND
    progress_words = (b" samples)", b" sample)", b"total time:")
    judge_api = frozenset({CHAT})
    served_needs = ServedNeeds(
        api=frozenset({CHAT}), arguments=frozenset({"base_url", "api_key", "responses_api"}), asks_again=True
    )

    def __init__(self, settings: HarnessSettings) -> None:
        self.name = settings.name
        self._settings = settings

    def info(self) -> HarnessInfo:
        """Report which inspect-ai is installed beside the interpreter."""
        return describe(self._settings, self.kind, _PACKAGE)

    def violations(self, request: EvaluateRequest) -> Iterable[FieldViolation]:
        """Yield what inspect-ai's command line can't take."""
        if not _MODEL.fullmatch(request.model) or ".." in request.model.split("/"):
            yield FieldViolation("model", "must be a provider and a model of inspect-ai, such as `openai/gpt-4o`")
        for index, task in enumerate(request.tasks):
            if problem := task_problem(task) or _file_name_problem(task):
                yield FieldViolation(f"tasks[{index}]", problem)
        yield from _option_violations(request)
        yield from arguments.violations("model_args", request.model_args)
        yield from arguments.violations("gen_kwargs", request.gen_kwargs)
        yield from _model_args_violations(request)
        yield from task_arguments.violations(request, self._settings.args)

    def unknown_task_args(self, request: EvaluateRequest, /) -> Iterable[FieldViolation]:
        """Yield the arguments that the function of none of the tasks takes."""
        return task_arguments.unknown(request, task_functions(self._settings.include_path))

    def command(self, run: Run) -> Command:
        """Build the command line. Raises RunFailedError if no file of `include_path` has the task."""
        return self.commands([run])[0]

    def commands(self, runs: Iterable[Run]) -> list[Command]:
        """Build the command lines of several runs with one scan of `include_path`. Raises RunFailedError, as `command`."""
        files = task_files(self._settings.include_path)
        return [self._command(run, files) for run in runs]

    def _command(self, run: Run, files: Mapping[str, Path]) -> Command:
        """Build a command line. The arguments of model, generation and tasks go into files, which preserve every value."""
        configs = {
            "model": _model_args(run.request),
            "generate": plain_arguments(run.request.gen_kwargs),
            "task": task_arguments.of_tasks(run.request),
        }
        paths = {name: run.attempt_dir / f"{name}.json" for name, config in configs.items() if config}
        preload = _preload(self._settings, run.request.model)
        return Command(
            argv=(
                *(*preload.program, "eval", *self._task_specs(run.request.tasks, files)),
                *(f"--{name}-config={path}" for name, path in paths.items()),
                *_options(run),
                *self._settings.args,
            ),
            env={**_ENVIRONMENT, **self._settings.env},
            files={path: json.dumps(configs[name], sort_keys=True).encode() for name, path in paths.items()},
            cwd=self._settings.working_dir,
            preload=preload if self._settings.warm == "auto" else None,
            watched_dirs=self._settings.include_path,
        )

    def with_served_model(self, request: EvaluateRequest, served: ServedEndpoint) -> EvaluateRequest:
        """Have the server asked for chats, a bounded number of times each. inspect-ai takes an address on its command line
        alone, where others may see it, and so gets the key by a file."""
        key = {"api_key": served.key} if served.key else {}
        address = served.open_url if served.key else served.url
        pointed = pointed_at(request, f"openai/{served.name}", base_url=address, responses_api=False, **key)
        if "max_retries" not in request.gen_kwargs.fields:
            pointed.gen_kwargs["max_retries"] = _SERVED_MAX_RETRIES
        return pointed

    def judge_variables(self, judge: ServedEndpoint) -> Mapping[str, str]:
        """Return where the provider `openai-api` looks for a service of this name, which the command line names as grader."""
        prefix = _JUDGE_SERVICE.upper().replace("-", "_")
        return {f"{prefix}_BASE_URL": judge.url, f"{prefix}_API_KEY": API_KEY}

    def catalog_command(self) -> Command:
        """Query inspect-ai for the tasks in the operator's folders and the model providers."""
        return catalog_command(self._settings, _CATALOG_SCRIPT, _preload(self._settings))

    def read_progress(self, line: str, progress: Progress) -> bool:
        """Read a line of `--display plain`, which counts the samples of one task after the other."""
        before = Progress()
        before.CopyFrom(progress)
        text = strip_colours(line[:1000])
        if status := _STATUS_LINE.search(text):
            _count(int(status["done"]), int(status["steps"]), int(status["samples"]), progress)
        elif task := _TASK_LINE.match(text):
            _begin(task["task"], int(task["samples"].replace(",", "") or 0) * int(task["epochs"] or 1), progress)
        elif text.startswith("total time:"):
            _end(progress)
        return progress != before

    def read_results(self, run: Run, exit_status: Exit, log_tail: list[str]) -> Mapping[str, ModelResult]:
        """Read what the logs say: inspect-ai exits with 0 even if a task failed."""
        check_exit(exit_status, log_tail)
        logs = read_logs(run.output_dir)
        if not logs:
            message = find_failure(log_tail) or "inspect-ai left no log"
            raise failed(message, "RESULTS_MISSING")
        _require_all_good(logs, run.request.tasks)
        good = _good_logs(logs, run.request.tasks)
        _require_something(good, run.request)
        bad = {f"samples of task {task}": bad_samples(log) for task, log in good.items()}
        warnings = require_answers(bad, run.request)
        result = result_of_logs(good)
        ignored = (*ignored_settings([result], run.request), *task_arguments.ignored(run.request, good))
        result.warnings.extend([*ignored, *warnings, *unscored([result]), *_left_out(logs, good)])
        return {run.request.model: result}

    def read_finished(self, run: Run, name: str) -> Mapping[str, ModelResult]:
        """Read the log of a task, which inspect-ai writes when the task ends."""
        log = read_finished_log(run.output_dir, name)
        good = _good_logs([log], run.request.tasks) if log else {}
        return {run.request.model: result_of_logs(good)} if good else {}

    def read_samples(self, file: BinaryIO, offset: int) -> Iterator[SampleRow]:
        """Read the samples of a log: its tasks have no other samples files."""
        return read_samples(file, offset)

    def _task_specs(self, tasks: Sequence[str], files: Mapping[str, Path]) -> list[str]:
        missing = [task for task in tasks if task not in files]
        if missing:
            known = ", ".join(sorted(files)) or "none"
            message = f"harnesses.{self.name}.include_path has no task {', '.join(missing)}; it has: {known}"
            raise RunFailedError("TASKS_MISSING", shorten(message))
        return [f"{files[task]}@{task}" for task in tasks]


def _options(run: Run) -> Iterator[str]:
    request = run.request
    yield f"--model={request.model}"
    yield f"--log-dir={run.output_dir}"
    yield from ("--log-format=json", "--display=plain")
    if base_url := plain_arguments(request.model_args).get("base_url"):
        yield f"--model-base-url={base_url}"
    if request.HasField("judge_model"):
        grader = {"model": f"openai-api/{_JUDGE_SERVICE}/{model_name(request.judge_model)}", "max_retries": _SERVED_MAX_RETRIES}
        yield f"--model-role=grader={json.dumps(grader)}"
    if request.HasField("limit"):
        yield f"--limit={int(request.limit)}"
    if request.batch_size not in ("", "auto"):
        yield f"--max-connections={request.batch_size}"
    if request.HasField("log_samples") and not request.log_samples:
        yield "--no-log-samples"
    if request.predict_only:
        yield "--no-score"
    yield from task_arguments.options(request)


def _preload(settings: HarnessSettings, model: str = "") -> Preload:
    """Return what all runs of a provider's models have in common; without a model, those of all."""
    provider = model.partition("/")[0]
    return Preload(
        harness=settings.name,
        program=(str(settings.python), "-m", "inspect_ai"),
        module="inspect_ai",
        modules=(*_MODULES, *installed_modules(settings, f"inspect_ai.model._providers.{provider}")),
    )


def _model_args(request: EvaluateRequest) -> dict[str, Any]:
    device = {"device": request.device} if request.device else {}
    given = {key: value for key, value in plain_arguments(request.model_args).items() if key != "base_url"}
    return {**given, **device}


def _file_name_problem(task: str) -> str | None:
    if len(task.encode()) > _MAX_TASK_BYTES:
        return f"is too long for a file's name: at most {_MAX_TASK_BYTES} bytes"
    return "must be a task's name: no `@`" if "@" in task else None


def _option_violations(request: EvaluateRequest) -> Iterator[FieldViolation]:
    if request.HasField("num_fewshot"):
        yield FieldViolation("num_fewshot", "inspect-ai's tasks choose their examples themselves: leave it out")
    if request.HasField("limit") and not request.limit.is_integer():
        yield FieldViolation("limit", "inspect-ai takes a whole number of documents, and no fraction")
    if request.batch_size and not _BATCH_SIZE.fullmatch(request.batch_size):
        yield FieldViolation("batch_size", "must be a positive number or `auto`")
    yield from device_violations(request)


def _model_args_violations(request: EvaluateRequest) -> Iterator[FieldViolation]:
    fields = request.model_args.fields
    for key in (key for key in _RESERVED_ARGUMENTS if key in fields):
        yield FieldViolation(f"model_args.{key}", "inspect-ai passes it on already")
    if "device" in fields and request.device:
        yield FieldViolation("model_args.device", "is given already: use the request's own `device`")
    if "base_url" in fields and not fields["base_url"].string_value:
        yield FieldViolation("model_args.base_url", "must be a URL")


def _begin(task: str, samples: int, progress: Progress) -> None:
    if progress.phase > Progress.PHASE_EVALUATING or task == progress.current_task:
        return
    progress.phase = max(progress.phase, Progress.PHASE_LOADING)
    progress.current_task = task
    progress.unit = "samples"
    advance(progress, Bar("", 0, samples, None, None))


def _end(progress: Progress) -> None:
    """Finish: all tasks are done. The results repeat the tasks' titles, which were counted as more to do."""
    progress.phase = Progress.PHASE_SCORING
    progress.current_task = ""
    progress.total = progress.done


def _count(done_steps: int, steps: int, samples: int, progress: Progress) -> None:
    """Count samples by the steps done: a task's last line may count too few of the samples themselves."""
    if progress.phase > Progress.PHASE_EVALUATING or not steps or not samples:
        return
    progress.phase = Progress.PHASE_EVALUATING
    progress.unit = "samples"
    advance(progress, Bar("", min(done_steps, steps) * samples // steps, samples, None, None))


def _latest(logs: Sequence[Log]) -> dict[str, Log]:
    """Return the latest log of every task, under each of the task's names."""
    return {name: log for log in logs for name in log.names}


def _good_logs(logs: Sequence[Log], tasks: Iterable[str]) -> dict[str, Log]:
    """Return the latest log of each of these tasks, if its status is success."""
    latest = _latest(logs)
    return {task: latest[task] for task in tasks if task in latest and latest[task].status == SUCCESS}


def _left_out(logs: Iterable[Log], taken: Mapping[str, Log]) -> Iterator[str]:
    """Yield a warning if tasks have logs of models whose results are not taken: the operator may have named several."""
    models = {str(log.spec.get("model")) for log in taken.values()}
    others = {model for log in logs if (model := str(log.spec.get("model"))) not in models and not log.names.isdisjoint(taken)}
    if others:
        yield shorten(
            f"a job has the results of one model, here {', '.join(sorted(models))}, and not of {', '.join(sorted(others))}"
        )


def _require_something(logs: Mapping[str, Log], request: EvaluateRequest) -> None:
    """Raise RunFailedError for a log that neither has a sample nor says of how many its results are."""
    empty = [task for task, log in logs.items() if is_empty(log)]
    if empty and not request.predict_only:
        raise RunFailedError("RESULTS_MISSING", shorten(f"nothing was evaluated, by the logs of: {', '.join(empty)}"))


def _require_all_good(logs: Sequence[Log], tasks: Sequence[str]) -> None:
    """Raise RunFailedError unless every task has a log and the status of its latest one is success."""
    latest = _latest(logs)
    for task, log in ((task, latest[task]) for task in tasks if task in latest):
        if log.status != SUCCESS:
            raise failed(log.error or _why_not_good(task, log))
    missing = [task for task in tasks if task not in latest]
    if missing:
        raise RunFailedError("TASKS_MISSING", shorten(f"there are logs, but none of: {', '.join(missing)}"))


def _why_not_good(task: str, log: Log) -> str:
    """Return why a log has another status than success, where it has no error: too many samples failed, or nobody knows. Those
    of a cancelled task failed since it was cancelled."""
    bad = bad_samples(log)
    status = f"inspect-ai left task {task} with the status {log.status}"
    return shorten(f"{status}: {bad.describe('samples')}" if bad.failed and log.status == ERROR else status)
