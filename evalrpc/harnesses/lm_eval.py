"""lm-eval (EleutherAI's harness), driven through its command line.

What a client can do with `model_args` is what it can do with lmms-eval's: they become keyword arguments of lm-eval's model
class, and a client is trusted with whatever the account of the server may read, write and reach.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from evalrpc.config import HarnessSettings
from evalrpc.errors import FieldViolation
from evalrpc.harnesses import arguments, lm_eval_family
from evalrpc.harnesses.arguments import plain_arguments, yaml_text
from evalrpc.harnesses.base import Command, Exit, Run
from evalrpc.harnesses.installation import Package, catalog_command, describe, note_version
from evalrpc.harnesses.progress_bars import advance, read_bar
from evalrpc.v1.evaluation_service_pb2 import HarnessInfo
from evalrpc.v1.job_pb2 import EvaluateRequest, ModelResult, Progress

KIND: Final = "lm-eval"

_PACKAGE: Final = Package(title="lm-eval", name="lm_eval")
_CONFIG_NAME: Final = "lm-eval.yaml"
_REQUESTS_LABEL = re.compile(r"(Running \w+ requests|Requesting API)?")
_CATALOG_SCRIPT: Final = """
import json, sys
import lm_eval.models
from lm_eval.api.registry import MODEL_REGISTRY
from lm_eval.tasks import TaskManager
tasks = TaskManager(include_path=json.loads(sys.argv[1])).all_tasks
print(json.dumps({"tasks": list(tasks), "models": list(MODEL_REGISTRY)}))
"""


class LmEvalHarness:
    """Runs `python -m lm_eval run` in the environment that the operator configured."""

    kind = KIND

    def __init__(self, settings: HarnessSettings) -> None:
        self.name = settings.name
        self._settings = settings

    def info(self) -> HarnessInfo:
        """Say which lm-eval is installed beside the interpreter."""
        return describe(self._settings, self.kind, _PACKAGE)

    def violations(self, request: EvaluateRequest) -> Iterable[FieldViolation]:
        """Yield what lm-eval's command line can't take."""
        yield from lm_eval_family.violations(request, _PACKAGE.title)
        yield from arguments.violations("model_args", request.model_args)
        yield from arguments.violations("gen_kwargs", request.gen_kwargs)
        yield from _model_args_violations(request)

    def command(self, run: Run) -> Command:
        """Build the command line. Model and generation arguments go through a file, which carries every value as it is."""
        config_path = run.attempt_dir / _CONFIG_NAME
        config = self._config(run.request)
        return Command(
            argv=(
                str(self._settings.python),
                *lm_eval_family.launcher(len(run.gpus)),
                *("-m", "lm_eval", "run"),
                *([f"--config={config_path}"] if config else []),
                *_options(run),
                *self._settings.args,
            ),
            env=self._settings.env,
            files={config_path: config} if config else {},
            cwd=self._settings.working_dir,
            watched_dirs=self._settings.include_path,
        )

    def catalog_command(self) -> Command:
        """Ask lm-eval's own registries: tasks, groups and tags, and the names of models with their aliases."""
        return catalog_command(self._settings, _CATALOG_SCRIPT)

    def read_progress(self, line: str, progress: Progress) -> bool:
        """Take in a line of lm-eval's log or one drawing of its progress bars, one for every kind of request."""
        before = Progress()
        before.CopyFrom(progress)
        lm_eval_family.read_phase(line, progress)
        if progress.phase == Progress.PHASE_EVALUATING:
            _read_requests_bar(line, progress)
        return progress != before

    def read_results(self, run: Run, exit_status: Exit, log_tail: list[str]) -> Mapping[str, ModelResult]:
        """Read the results, and doubt them: lm-eval exits with 0 where it could not write them."""
        results = lm_eval_family.read_good_results(run, exit_status, log_tail, _PACKAGE.title)
        note_version(self._settings, _PACKAGE, results)
        return results

    def _config(self, request: EvaluateRequest) -> bytes:
        """Write what the command line holds at most once (`--include_path`) or would read as something else, as YAML."""
        entries = {
            "include_path": [str(folder) for folder in self._settings.include_path],
            "model_args": plain_arguments(request.model_args),
            "gen_kwargs": plain_arguments(request.gen_kwargs),
        }
        return "".join(f"{key}: {yaml_text(value)}\n" for key, value in entries.items() if value).encode()


def _options(run: Run) -> Iterator[str]:
    tasks = run.request.tasks
    yield f"--model={run.request.model}"
    # A single name that a folder in the working directory has too would be taken for the folder. lm-eval drops duplicates.
    yield f"--tasks={','.join(tasks if len(tasks) > 1 else [*tasks, *tasks])}"
    yield f"--output_path={run.output_dir}"
    yield from lm_eval_family.options(run.request)


def _model_args_violations(request: EvaluateRequest) -> Iterator[FieldViolation]:
    for key in ("batch_size", "device"):
        if key in request.model_args.fields:
            yield FieldViolation(f"model_args.{key}", f"lm-eval passes it on already: use the request's own `{key}`")
    # lm-eval names the results folder after a model argument, and would leave the output folder.
    for key, value in plain_arguments(request.model_args).items():
        if value == "..":
            yield FieldViolation(f"model_args.{key}", "must not be `..`")


def _read_requests_bar(line: str, progress: Progress) -> None:
    bar = read_bar(line)
    if bar is None or not _REQUESTS_LABEL.fullmatch(bar.label):
        return
    progress.unit = "requests"
    advance(progress, bar)
