"""Runs any program of the operator's as a harness."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from google.protobuf import json_format

from evalrpc.config import HarnessSettings
from evalrpc.config.engines import APIS
from evalrpc.errors import ConfigurationError, FieldViolation
from evalrpc.harnesses.bad_answers import unscored, warn
from evalrpc.harnesses.base import Command, Exit, Preload, Run, ServedEndpoint, ServedNeeds
from evalrpc.harnesses.code_arguments import code_arguments
from evalrpc.harnesses.failures import check_exit, failed, find_failure
from evalrpc.harnesses.ignored_settings import ignored_settings
from evalrpc.harnesses.placeholders import filled_in, placeholders_in, require_known
from evalrpc.harnesses.progress_bars import follow_bar
from evalrpc.harnesses.sample_answers import EMPTY_OR_ERROR, AnswersOfRun
from evalrpc.harnesses.served import pointed_at
from evalrpc.results.layout import read_results, unread_results
from evalrpc.v1.catalog_pb2 import HarnessInfo
from evalrpc.v1.jobs_pb2 import EvaluateRequest, Progress
from evalrpc.v1.results_pb2 import ModelResult

KIND: Final = "command"
PLACEHOLDERS: Final = ("request_json", "output_dir", "model", "tasks", "job_id", "attempt")
"""The names allowed in braces in the command line."""

_REQUEST_NAME = "request.json"
_IN_REQUEST_ALONE: Final = frozenset(
    {"model_args", "num_fewshot", "batch_size", "device", "limit", "gen_kwargs", "predict_only"}
)
"""What a program that does not read its request can't know."""


class CommandHarness:
    """Runs the operator's command line, with its placeholders filled in.

    Raises ConfigurationError for an empty command, an unknown placeholder, and a client's text in a shell's code.
    """

    kind = KIND
    served_needs = ServedNeeds(api=frozenset(APIS), variables=("OPENAI_BASE_URL", "OPENAI_API_BASE"))

    def __init__(self, settings: HarnessSettings) -> None:
        self.name = settings.name
        self._settings = settings
        if not settings.command:
            raise ConfigurationError(f"setting harnesses.{self.name}.command: is needed for the kind `command`")
        require_known(f"setting harnesses.{self.name}.command", settings.command, PLACEHOLDERS)
        if settings.preload and (settings.command[1:2] != ("-m",) or placeholders_in(settings.command[:3])):
            raise ConfigurationError(
                f"setting harnesses.{self.name}.preload: is for a command that begins with an interpreter, -m and a module"
            )
        self._reads_request = "request_json" in placeholders_in(settings.command)
        self._in_code = placeholders_in(code_arguments(settings.command))
        for name in ("model", "tasks"):
            if name in self._in_code:
                raise ConfigurationError(
                    f"setting harnesses.{self.name}.command: {{{name}}} would be read as code, which any client could write: "
                    f"""make it an argument of the code, as in ["sh", "-c", "program --{name} \\"$1\\"", "sh", "{{{name}}}"]"""
                )

    def info(self) -> HarnessInfo:
        """Say whether the program exists."""
        program = self._settings.command[0]
        reason = (
            "" if shutil.which(program) else f"there is no program {program}: install it or set harnesses.{self.name}.command"
        )
        return HarnessInfo(name=self.name, kind=self.kind, available=not reason, unavailable_reason=reason)

    def violations(self, request: EvaluateRequest) -> Iterable[FieldViolation]:
        """Yield tasks that the program would read as several, a folder whose name a shell would read as code, and arguments of
        the tasks for a program that does not get them."""
        for index, task in enumerate(request.tasks):
            if "," in task:
                yield FieldViolation(f"tasks[{index}]", "must be one task's name: no comma")
        if request.output_dir and "output_dir" in self._in_code:
            yield FieldViolation("output_dir", f"must be empty: the command of harness {self.name} has it in a shell's code")
        if request.task_args.fields and not self._reads_request:
            problem = f"must be empty: the command of harness {self.name} reads no request, for want of {{request_json}}"
            yield FieldViolation("task_args", problem)

    def warnings(self, request: EvaluateRequest, /) -> Iterable[str]:
        """Yield a warning for what a program that does not read its request takes no notice of."""
        ignored = [field.name for field, _ in request.ListFields() if field.name in _IN_REQUEST_ALONE]
        if ignored and not self._reads_request:
            yield f"{', '.join(ignored)}: the command of harness {self.name} has no {{request_json}} to read that in"

    def unknown_task_args(self, _request: EvaluateRequest, /) -> Iterable[FieldViolation]:
        """Yield nothing: only the program knows what it takes."""
        return ()

    def command(self, run: Run) -> Command:
        """Fill in the placeholders, separately in each argument."""
        request_path = run.attempt_dir / _REQUEST_NAME
        values = {
            "request_json": str(request_path),
            "output_dir": str(run.output_dir),
            "model": run.request.model,
            "tasks": ",".join(run.request.tasks),
            "job_id": run.job_id,
            "attempt": str(run.attempt),
        }
        return Command(
            argv=filled_in(self._settings.command, values),
            env=self._settings.env,
            files={
                request_path: json_format.MessageToJson(run.request, preserving_proto_field_name=True, sort_keys=True).encode()
            },
            cwd=self._settings.working_dir,
            preload=self._preload(),
        )

    def _preload(self) -> Preload | None:
        """Return what the operator wants to have in memory."""
        settings = self._settings
        if not settings.preload or settings.warm != "auto":
            return None
        return Preload(self.name, settings.command[:3], settings.command[2], settings.preload)

    def with_served_model(self, request: EvaluateRequest, served: ServedEndpoint) -> EvaluateRequest:
        """Have the program told the name that the server is asked for. Its environment has the address."""
        return pointed_at(request, served.name)

    def catalog_command(self) -> None:
        """Return None: only the operator knows what the program accepts."""

    def read_progress(self, line: str, progress: Progress) -> bool:
        """Read a progress bar such as `4/20` or tqdm's."""
        return follow_bar(line, progress, "items")

    def read_results(self, run: Run, exit_status: Exit, log_tail: list[str]) -> Mapping[str, ModelResult]:
        """Read what the program left. It succeeded if it left at least one result, no failed exit was seen, and no samples say
        that nothing was answered."""
        check_exit(exit_status, log_tail)
        results = read_results(run.output_dir, run.request.model)
        if not results:
            reason = find_failure(log_tail) or _nothing_read(run.output_dir)
            raise failed(reason, "RESULTS_MISSING")
        warn(results, ignored_settings(results.values(), run.request))
        warn(results, unscored(results.values()))
        warn(results, AnswersOfRun(run.output_dir, suspicious=EMPTY_OR_ERROR).warnings(results, run.request))
        return results


def _nothing_read(output_dir: Path) -> str:
    other = unread_results(output_dir)
    but = f", but {other}" if other else ""
    return f"the program left no file named like MODEL/20260214_103045_results.json{but}"
