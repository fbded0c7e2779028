"""lmms-eval, driven through its command line.

What a client can do with `model_args`: they become keyword arguments of lmms-eval's model class. So a client chooses which
weights and which remote code are loaded (`pretrained`, `trust_remote_code`), which addresses are called (`base_url`), and for
some model classes which files are written (`response_persistent_folder`). A key or value never becomes another argument,
option or program, but a client is trusted with whatever the account of the server may read, write and reach.
"""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from evalrpc.config import HarnessSettings
from evalrpc.errors import FieldViolation, RunFailedError
from evalrpc.harnesses import lmms_eval_arguments
from evalrpc.harnesses.bars import advance, read_bar
from evalrpc.harnesses.base import Command, Exit, Run
from evalrpc.harnesses.failures import check_exit, find_failure, shorten, strip_colours
from evalrpc.harnesses.lmms_eval_arguments import argument_string, is_one_argument, number_text
from evalrpc.results import failed_answer, missing_tasks, read_results
from evalrpc.v1.evaluation_service_pb2 import HarnessInfo
from evalrpc.v1.job_pb2 import EvaluateRequest, ModelResult, Progress

KIND: Final = "lmms-eval"

_CONFIG_NAME = "lmms-eval.config"
_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu|npu|hpu|mlu)(:[0-9]{1,3})?")
_BATCH_SIZE = re.compile(r"auto(:[1-9][0-9]{0,8})?|[1-9][0-9]{0,8}")
_LISTINGS: Final = frozenset({"list", "list_groups", "list_tags", "list_subtasks"})
_FILE_SUFFIXES: Final = (".yaml", ".yml", ".json")
_DIST_INFO = re.compile(r"lmms_eval-(.+)\.dist-info")

_PHASES: Final = (
    (re.compile(r"Verbosity set to"), Progress.PHASE_STARTING),
    (re.compile(r"Selected Tasks|Running on rank|Building contexts for (?P<task>\S{1,200})"), Progress.PHASE_LOADING),
    (re.compile(r"Running \w+ requests"), Progress.PHASE_EVALUATING),
    (re.compile(r"Postprocess(ing|ed)\b|Saving results"), Progress.PHASE_SCORING),
)
_CATALOG_SCRIPT: Final = """
import json, sys
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.tasks import TaskManager
tasks = TaskManager("ERROR", include_path=json.loads(sys.argv[1]) or None).all_tasks
print(json.dumps({"tasks": list(tasks), "models": MODEL_REGISTRY_V2.list_model_names()}))
"""
_NOT_SAVED = re.compile(r".* - (?P<error>\w+(?:Error|Exception)\(.*\))")


class LmmsEvalHarness:
    """Runs `python -m lmms_eval` in the environment that the operator configured."""

    kind = KIND

    def __init__(self, settings: HarnessSettings) -> None:
        self.name = settings.name
        self._settings = settings

    def info(self) -> HarnessInfo:
        """Say which lmms-eval is installed beside the interpreter."""
        python = shutil.which(self._settings.python)
        version = _installed_version(Path(python)) if python else None
        reason = self._unavailable_reason(python, version)
        return HarnessInfo(
            name=self.name, kind=self.kind, version=version or "", available=not reason, unavailable_reason=reason
        )

    def violations(self, request: EvaluateRequest) -> Iterable[FieldViolation]:
        """Yield what lmms-eval's command line can't take."""
        if not _MODEL.fullmatch(request.model):
            yield FieldViolation("model", "must be the name of a model type of lmms-eval: letters, digits, `_`, `.` and `-`")
        for index, task in enumerate(request.tasks):
            if problem := _task_problem(task):
                yield FieldViolation(f"tasks[{index}]", problem)
        if request.batch_size and not _BATCH_SIZE.fullmatch(request.batch_size):
            yield FieldViolation("batch_size", "must be a positive number, `auto`, or `auto:N`")
        if request.device and not _DEVICE.fullmatch(request.device):
            yield FieldViolation("device", "must be a device such as `cuda`, `cuda:0`, `cpu` or `mps`")
        if not is_one_argument(request.output_dir):
            yield FieldViolation(
                "output_dir", "lmms-eval can't write to a folder with a comma or an unclosed quote in its path"
            )
        yield from _model_args_violations(request)
        yield from lmms_eval_arguments.violations("gen_kwargs", request.gen_kwargs, nested=False)

    def command(self, run: Run) -> Command:
        """Build the command line. Model and generation arguments go through a file: there they have no limit of size."""
        config_path = run.attempt_dir / _CONFIG_NAME
        config = self._config(run.request)
        return Command(
            argv=(
                str(self._settings.python),
                *_launcher(len(run.gpus)),
                *("-m", "lmms_eval"),
                *([f"--config={config_path}"] if config else []),
                *_options(run),
                *self._settings.args,
            ),
            env=self._settings.env,
            files={config_path: config} if config else {},
            cwd=self._settings.working_dir,
        )

    def catalog_command(self) -> Command:
        """Ask lmms-eval's own registries: tasks, groups and tags, and the names of models with their aliases."""
        folders = json.dumps([str(folder) for folder in self._settings.include_path])
        return Command(
            argv=(str(self._settings.python), "-c", _CATALOG_SCRIPT, folders),
            env=self._settings.env,
            cwd=self._settings.working_dir,
            watched_dirs=self._settings.include_path,
        )

    def read_progress(self, line: str, progress: Progress) -> bool:
        """Take in a line of lmms-eval's log or one drawing of its progress bar."""
        before = Progress()
        before.CopyFrom(progress)
        _read_phase(line, progress)
        if progress.phase <= Progress.PHASE_EVALUATING and "Responding" in line:
            _read_responding_bar(line, progress)
        return progress != before

    def read_results(self, run: Run, exit_status: Exit, log_tail: list[str]) -> Mapping[str, ModelResult]:
        """Read the results, and doubt them: lmms-eval exits with 0 after most failures."""
        check_exit(exit_status, log_tail)
        results = read_results(run.output_dir, run.request.model)
        if not results:
            raise _no_results(log_tail)
        _check_tasks(results, run.request)
        _check_answers(results)
        return results

    def _unavailable_reason(self, python: str | None, version: str | None) -> str:
        if python is None:
            return f"there is no program {self._settings.python}: set harnesses.{self.name}.python to lmms-eval's interpreter"
        if version is None:
            return f"lmms-eval is not installed for {python}: run `{python} -m pip install lmms_eval`"
        missing = [str(folder) for folder in self._settings.include_path if not folder.is_dir()]
        return f"harnesses.{self.name}.include_path: there is no folder {', '.join(missing)}" if missing else ""

    def _config(self, request: EvaluateRequest) -> bytes:
        """Write what the command line holds at most once (`--include_path`) or only up to 128 KiB, as YAML."""
        folders = [_yaml(str(folder)) for folder in self._settings.include_path]
        entries = {
            "include_path": f"[{', '.join(folders)}]" if folders else "",
            "model_args": _yaml(argument_string(request.model_args)) if request.model_args.fields else "",
            "gen_kwargs": _yaml(argument_string(request.gen_kwargs)) if request.gen_kwargs.fields else "",
        }
        return "".join(f"{key}: {text}\n" for key, text in entries.items() if text).encode()


def _launcher(gpu_count: int) -> Iterator[str]:
    """Start one process per GPU. Port 0 takes a free one, so that runs side by side don't meet."""
    if gpu_count > 1:
        yield from ("-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={gpu_count}", "--num_machines=1")
        yield from ("--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0")


def _options(run: Run) -> Iterator[str]:
    request = run.request
    yield f"--model={request.model}"
    yield f"--tasks={','.join(request.tasks)}"
    yield f"--output_path={run.output_dir}"
    yield "--timezone=UTC"
    yield "--verbosity=INFO"
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


def _task_problem(task: str) -> str | None:
    if not task or task != task.strip() or not task.isprintable():
        return "must be a task's name"
    if task[0] in "-." or any(character in task for character in ",/\\*?[]"):
        return "must be one task's name: no path, no pattern, no list, no option"
    if task.endswith(_FILE_SUFFIXES):
        return "must be a task's name and not a file's"
    if task in _LISTINGS:
        return "is lmms-eval's word for a listing and not a task"
    return None


def _model_args_violations(request: EvaluateRequest) -> Iterator[FieldViolation]:
    yield from lmms_eval_arguments.violations("model_args", request.model_args, nested=True)
    for key, given in (("batch_size", True), ("device", bool(request.device))):
        if given and key in request.model_args.fields:
            yield FieldViolation(f"model_args.{key}", f"lmms-eval passes it on already: use the request's own `{key}`")
    # lmms-eval names the results folder after a model argument, and would leave the output folder.
    if re.search(r"=\.\.(,|$)", argument_string(request.model_args)):
        yield FieldViolation("model_args", "a value must not be `..`")


def _yaml(text: str) -> str:
    """Quote for YAML, in ASCII, so that no reader's locale matters."""
    plain = (
        character if " " <= character <= "~" and character not in '"\\' else f"\\U{ord(character):08X}" for character in text
    )
    return f'"{"".join(plain)}"'


def _read_phase(line: str, progress: Progress) -> None:
    """Move on to the phase that the line speaks of, never back: an answer in the log may say anything."""
    for pattern, phase in _PHASES:
        match = pattern.search(line)
        if match and phase >= progress.phase:
            progress.phase = phase
            progress.current_task = match.groupdict().get("task") or ""
            if phase == Progress.PHASE_SCORING:
                progress.ClearField("rate_per_second")
                progress.ClearField("time_left")
            return


def _read_responding_bar(line: str, progress: Progress) -> None:
    bar = read_bar(line)
    # With several processes each speaks for its own share; the first stands for all.
    if bar is None or "Responding" not in bar.label or re.search(r"\[rank (?!0\])", bar.label):
        return
    progress.phase = Progress.PHASE_EVALUATING
    progress.unit = "requests"
    advance(progress, bar)


def _no_results(log_tail: Iterable[str]) -> RunFailedError:
    lines = [strip_colours(line) for line in log_tail]
    if failure := find_failure(lines):
        return RunFailedError("HARNESS_FAILED", failure)
    unsaved = [match["error"] for match in map(_NOT_SAVED.fullmatch, lines) if match]
    why = f"could not save them: {unsaved[-1]}" if unsaved else "left none, and its log does not say why"
    return RunFailedError("RESULTS_MISSING", shorten(f"no results: lmms-eval {why}"))


def _check_tasks(results: Mapping[str, ModelResult], request: EvaluateRequest) -> None:
    missing = set(request.tasks).intersection(*(missing_tasks(result, request.tasks) for result in results.values()))
    if missing:
        raise RunFailedError("TASKS_MISSING", shorten(f"there are results, but none of: {', '.join(sorted(missing))}"))


def _check_answers(results: Mapping[str, ModelResult]) -> None:
    answer = failed_answer(path for result in results.values() for path in result.samples)
    if answer is not None:
        why = answer.partition("] ")[2] or answer
        raise RunFailedError("ALL_REQUESTS_FAILED", shorten(f"the model answered none of the requests: {why}"))


def _installed_version(python: Path) -> str | None:
    """Find lmms-eval among the packages of an environment, by the path of its interpreter."""
    folders = [folder for folder in python.parent.parent.glob("lib*/python*/*-packages") if folder.is_dir()]
    names = (_DIST_INFO.fullmatch(entry.name) for folder in folders for entry in sorted(folder.iterdir()))
    return next((match[1] for match in names if match), None)
