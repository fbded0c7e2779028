"""`evalrpc follow`: the checkpoints of a training run, each evaluated once it is complete."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import click

from evalrpc.cli import completion, wording
from evalrpc.cli.connection import SLOW_CALL_SECONDS, connect, table_options
from evalrpc.cli.exit_codes import ExitCode, fail
from evalrpc.cli.output import Form, GrowingTable, print_json_line, print_line
from evalrpc.cli.parameters import duration, trend_options
from evalrpc.cli.submit import (
    ENGINE_FLAGS,
    REQUEST_FIELDS,
    SUBMISSION_FIELDS,
    apply_flags,
    read_submission,
    submit_command,
    submit_options,
    suite_options,
)
from evalrpc.cli.submit_suite import Model, harness_requests, submit_suite_command
from evalrpc.cli.suite_reports import is_go, outcome_name
from evalrpc.cli.suite_runs import resolve_run
from evalrpc.cli.tables import Cell, Column, Kind
from evalrpc.client import EvalClient
from evalrpc.client.arguments import metric_text
from evalrpc.clock import SystemClock
from evalrpc.errors import EvalrpcError
from evalrpc.training.checkpoints import QUIET_SECONDS, CheckpointFolder
from evalrpc.training.evaluations import (
    FOLLOW_LABEL,
    Evaluation,
    Evaluations,
    JobEvaluations,
    SuiteEvaluations,
    pin_of,
    pinned_baseline,
)
from evalrpc.training.follower import LATER, MAX_OUTSTANDING, Choice, Follower, Happening, News
from evalrpc.v1.history_pb2 import TrendOptions
from evalrpc.v1.jobs_pb2 import JOB_STATUS_COMPLETED, JobFilter, JobInfo, SubmitJobRequest
from evalrpc.v1.suites_pb2 import SuiteRun

_NOT_OF_CHECKPOINTS: Final = ("request_id", "supersede_key", "validate_only")
"""Flags of `evalrpc submit` that make no sense for many checkpoints."""
_SHARED: Final = {
    *(*REQUEST_FIELDS, *ENGINE_FLAGS, "tasks", "model_args", "gen_kwargs", "task_args", "secrets"),
    *(*SUBMISSION_FIELDS, "labels", "timeout"),
}.difference(_NOT_OF_CHECKPOINTS)
"""The others that say what is submitted, and how."""

_LOOK_SECONDS: Final = 2.0
_ABANDONED_SECONDS: Final = 600.0
"""Checkpoints that change for so long no more, and are not complete, are not waited for at the end."""
_MAX_METRICS: Final = 5

_COLUMNS: Final = (
    Column("step", Kind.NUMBER),
    Column("status", Kind.WHOLE),
    Column("result"),
    Column("checkpoint"),
    Column("evaluation", Kind.WHOLE),
)
_TYPICAL_ROW: Final = ("x" * 6, "COMPLETED", "x" * 40, "x" * 16, "x" * 36)


def _step_pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise click.BadParameter(f"{text!r} is no regular expression: {error}") from error


@click.command(short_help="Evaluate the checkpoints of a training run as they appear.")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--suite", metavar="NAME", shell_complete=completion.suites, help="Submit this suite for each, rather than a job."
)
@click.option("--file", "file", metavar="FILE", help="Read an EvaluateRequest or SubmitJobRequest as JSON; - reads stdin.")
@click.option("--marker", default="", metavar="NAME", help="A checkpoint is complete when it has this file.")
@click.option(
    "--quiet",
    type=duration,
    default=f"{QUIET_SECONDS:g}s",
    show_default=True,
    metavar="DURATION",
    help="Without --marker, it is complete once its files have not changed for this long.",
)
@click.option("--every", type=click.IntRange(1), default=1, metavar="N", help="Only steps that are multiples of this.")
@click.option(
    "--keep-latest", type=click.IntRange(1), metavar="N", help="Only the latest checkpoints that there are, this many."
)
@click.option(
    "--step-pattern", type=_step_pattern, metavar="REGEX", help="Its first group in the name of a folder is the step."
)
@click.option(
    "--max-outstanding",
    type=click.IntRange(1),
    default=MAX_OUTSTANDING,
    show_default=True,
    metavar="N",
    help="Have this many evaluations wait and run at a time; of the others the newest is next.",
)
@click.option("--once", is_flag=True, help="End when all checkpoints that are there have been evaluated.")
@click.option("--until-step", type=int, metavar="N", help="End when this step has been reached, and all have been evaluated.")
@click.option(
    "--metric", "metrics", multiple=True, metavar="NAME", help="Raise an alarm for this metric alone. May be repeated."
)
@trend_options
@table_options
def follow_command(
    folder: Path,
    suite: str | None,
    file: str | None,
    marker: str,
    quiet: timedelta,
    every: int,
    keep_latest: int | None,
    step_pattern: re.Pattern[str] | None,
    max_outstanding: int,
    once: bool,
    until_step: int | None,
    metrics: tuple[str, ...],
    options: TrendOptions,
    baseline: str | None,
    harness_models: tuple[tuple[str, Model], ...],
    address: str | None,
    form: Form,
    **flags: Any,
) -> None:
    """Evaluate each checkpoint in a folder once it is complete, the newest first, until Ctrl-C.

    In --model-args and all other texts, {checkpoint} is the path of a checkpoint, {name} the last part of it, {step} its step:

    \b
      evalrpc follow out --model hf --tasks gsm8k --label run=x \\
          --model-args pretrained={checkpoint}
      evalrpc follow out --suite release --label run=x \\
          --harness-model lm-eval=hf,pretrained={checkpoint}

    The same command, started again, goes on where it was, and submits nothing twice. With --label, an alarm is raised when a
    metric of the jobs with these labels falls. With --once and --until-step, exits with 1 unless there are results, all have
    completed, and all decisions are GO.
    """
    submission = read_submission(file) if file else SubmitJobRequest()
    apply_flags(submission, {**dict.fromkeys(_NOT_OF_CHECKPOINTS), **flags})
    checkpoints = CheckpointFolder(
        folder, SystemClock(), marker=marker, quiet_seconds=quiet.total_seconds(), step_pattern=step_pattern
    )
    with connect(address, SLOW_CALL_SECONDS) as client:
        evaluations = _evaluations(client, folder, submission, suite, dict(harness_models), baseline)
        follower = Follower(checkpoints, evaluations, Choice(every, keep_latest), max_outstanding)
        display = _Display(form, _Alarms(client, submission, metrics, options))
        writing = _Writing(quiet.total_seconds() + _ABANDONED_SECONDS)
        try:
            for _ in _rounds(follower, checkpoints, display):
                is_over = once or (until_step is not None and follower.newest_step >= until_step)
                if once and not follower.is_readable:
                    fail(ExitCode.WRONG_CALL)
                if is_over and follower.is_idle:
                    if not follower.unfinished:
                        break
                    writing.wait_for(follower.unfinished)
        except KeyboardInterrupt:
            fail(ExitCode.INTERRUPTED, "the evaluations go on; the same command goes on following")
    if not display.has_result:
        fail(ExitCode.NOT_PASSED, f"nothing was evaluated: no checkpoint in {checkpoints.folder} was chosen")
    if not display.have_all_passed:
        raise click.exceptions.Exit(ExitCode.NOT_PASSED)


follow_command.params[3:3] = [
    *(option for option in submit_command.params if option.name in _SHARED),
    *(option for option in submit_suite_command.params if option.name in ("harness_models", "baseline")),
]


def _evaluations(
    client: EvalClient,
    folder: Path,
    submission: SubmitJobRequest,
    suite: str | None,
    harness_models: dict[str, Model],
    baseline: str | None,
) -> Evaluations:
    if suite is None and (harness_models or baseline):
        raise click.UsageError("--harness-model and --baseline are for --suite")
    try:
        if suite is None:
            return JobEvaluations(client, submission.request, **submit_options(submission))
        options, of_harnesses, baseline_id = suite_options(submission), harness_requests(harness_models), ""
        if baseline and baseline.startswith("@"):
            pin = pin_of(folder, suite, [submission.request, *of_harnesses.values()], baseline)
            baseline_id = _pinned(client, suite, pin, baseline)
            options["labels"] = {**submission.labels, FOLLOW_LABEL: pin}
        elif baseline:
            baseline_id = resolve_run(client, baseline)
        return SuiteEvaluations(client, suite, submission.request, of_harnesses, baseline_suite_run_id=baseline_id, **options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _pinned(client: EvalClient, suite: str, pin: str, baseline: str) -> str:
    """Return the run that a name named when the folder was first followed with it: what it names by now would be another
    evaluation of each checkpoint."""
    baseline_id = pinned_baseline(client, suite, pin)
    if not baseline_id:
        return resolve_run(client, baseline)
    print_line(f"evalrpc: the baseline stays {baseline_id}, which {baseline} named when following began", err=True)
    return baseline_id


def _rounds(follower: Follower, checkpoints: CheckpointFolder, display: "_Display") -> Iterator[None]:
    """Yield after each round of the follower."""
    while True:
        for news in follower.round():
            display.show(news)
        display.end_round()
        yield
        time.sleep(max(_LOOK_SECONDS, checkpoints.rest_seconds))


class _Writing:
    """Waits for checkpoints that are being written, as long as they change."""

    def __init__(self, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._seen: frozenset[tuple[Path, str | None]] = frozenset()
        self._names = ""
        self._since_seconds = 0.0

    def wait_for(self, unfinished: frozenset[tuple[Path, str | None]]) -> None:
        """Say what is waited for. Exits with 1 once nothing of it has changed for too long."""
        names = ", ".join(sorted(path.name for path, _ in unfinished))
        if names != self._names:
            print_line(f"evalrpc: waiting until complete: {names}", err=True)
        if unfinished != self._seen:
            self._seen, self._names, self._since_seconds = unfinished, names, time.monotonic()
        if time.monotonic() - self._since_seconds >= self._patience_seconds:
            fail(ExitCode.NOT_PASSED, f"not complete, and unchanged for {self._patience_seconds:g} s; not evaluated: {names}")


class _Display:
    """Prints a row for each submission and each result, and on stderr what else there is to say."""

    def __init__(self, form: Form, alarms: "_Alarms") -> None:
        self._is_json = form in (Form.JSON, Form.JSONL)
        self._table = GrowingTable(form, _COLUMNS, _TYPICAL_ROW)
        self._alarms = alarms
        self._is_news_of_run = False
        self.has_result = False
        """Whether an evaluation has ended, in whatever way."""
        self.have_all_passed = True

    def show(self, news: News) -> None:
        """Show what has happened."""
        self.have_all_passed = self.have_all_passed and _is_fine(news)
        if news.evaluation is None:
            print_line(f"evalrpc: {_remark(news)}", err=True)
            return
        if self._is_json:
            print_json_line(news.evaluation.message)
        else:
            self._table.print_row(_row(news, news.evaluation))
        if news.happening is Happening.ENDED:
            self.has_result = self._is_news_of_run = True

    def end_round(self) -> None:
        """Look at the run, if something of it has ended in this round."""
        if self._is_news_of_run:
            self._alarms.look()
        self._is_news_of_run = False


def _remark(news: News) -> str:
    if news.happening in (Happening.SKIPPED, Happening.REFUSED) and news.checkpoint is not None:
        return f"{news.checkpoint.path.name} (step {news.checkpoint.step}) is not evaluated: {news.text}"
    return news.text


def _row(news: News, evaluation: Evaluation) -> tuple[Cell, ...]:
    step, name = (news.checkpoint.step, news.checkpoint.path.name) if news.checkpoint else (None, "")
    return (step, *_status_and_result(evaluation), name, evaluation.id)


def _status_and_result(evaluation: Evaluation) -> tuple[str, str]:
    message = evaluation.message
    if isinstance(message, JobInfo):
        lines = list(wording.metric_lines(message)) if message.status == JOB_STATUS_COMPLETED else []
        more = ["..."] if len(lines) > _MAX_METRICS else []
        return wording.status_name(message.status), "; ".join([*lines[:_MAX_METRICS], *more]) or wording.detail(message)
    if not message.HasField("decision"):
        return wording.status_name(message.status), message.suite.name
    return outcome_name(message.decision), "; ".join([message.suite.name, *message.decision.reasons[:1]])


def _is_fine(news: News) -> bool:
    """Return whether nothing has failed, been refused or lost, or been decided other than by GO."""
    if news.happening is not Happening.ENDED or news.evaluation is None:
        return news.happening not in (Happening.REFUSED, Happening.LOST)
    message = news.evaluation.message
    return is_go(message) if isinstance(message, SuiteRun) else message.status == JOB_STATUS_COMPLETED


class _Alarms:
    """Says when a metric of the run falls, each alarm once, and which metrics have none, as nothing says what is better.

    The run is that of the jobs with these labels; without any there is no alarm.
    """

    def __init__(self, client: EvalClient, submission: SubmitJobRequest, metrics: Sequence[str], options: TrendOptions) -> None:
        self._client = client
        self._metrics = metrics
        self._filter = JobFilter(labels=submission.labels)
        self._options = options
        self._is_on = bool(submission.labels)
        self._said: set[str] = set()

    def look(self) -> None:
        """Look at the trends once more. That the server can't say them now, or at all, stops nothing."""
        if not self._is_on:
            return
        try:
            with suppress(*LATER):
                for trend in self._client.get_history(self._filter, self._metrics, trends=self._options).trends:
                    if trend.HasField("alarm"):
                        self._say(f"evalrpc: alarm: {wording.alarm(trend)}")
                    elif not trend.HasField("higher_is_better"):
                        name = metric_text(trend)
                        self._say(f"evalrpc: no alarm for {name}: its harness says no direction, and there is no --direction")
        except EvalrpcError as error:
            self._is_on = False
            print_line(f"evalrpc: there will be no alarm: {error}", err=True)

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            print_line(text, err=True)
