"""`evalrpc submit-suite`: suites with models, each pair a run of its own."""

from collections.abc import Mapping
from copy import deepcopy
from datetime import timedelta
from itertools import product
from typing import Any, Final, NamedTuple

import click

from evalrpc.cli import completion
from evalrpc.cli.connection import SLOW_CALL_SECONDS, connect
from evalrpc.cli.output import print_json_line, print_line
from evalrpc.cli.parameters import duration, reconnect_timeout_option, require_once_each
from evalrpc.cli.submit import apply_flags, submit_command, suite_options
from evalrpc.cli.suite_decisions import Display, decided, decision_options
from evalrpc.cli.suite_following import wait_for_runs
from evalrpc.cli.suite_runs import model_name, resolve_run
from evalrpc.client import EvalClient, values
from evalrpc.client.arguments import parse_arguments
from evalrpc.v1.jobs_pb2 import EvaluateRequest, SubmitJobRequest
from evalrpc.v1.suites_pb2 import SuiteRun

_SHARED: Final = (
    *("batch_size", "device", "num_gpus", "gpu_mode", "max_bad_answer_ratio", "secrets", "preparation", "executor"),
    "output_dir",
    *("request_id", "priority", "labels", "timeout", "max_attempts", "validate_only", "cache", "preemptible"),
)
"""The flags of `evalrpc submit` that a suite leaves to the client."""

_OPTIONS: Final = {option.name: option for option in submit_command.params if isinstance(option, click.Option)}


class Model(NamedTuple):
    """A model as a flag names it."""

    name: str
    """Its type. Empty: as `--harness-model` says."""
    arguments: Mapping[str, Any]

    def apply(self, request: EvaluateRequest) -> None:
        """Set it in a request."""
        if self.name:
            request.model = self.name
        arguments = values.arguments("model_args", self.arguments or None)
        if arguments is not None:
            request.model_args.MergeFrom(arguments)


def _model(text: str) -> Model:
    """Parse `[NAME][,KEY=VALUE...]` for a flag."""
    first, comma, rest = text.partition(",")
    name = "" if "=" in first or first.startswith("{") else first
    try:
        return Model(name, parse_arguments(text if not name else rest if comma else ""))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _harness_model(text: str) -> tuple[str, Model]:
    """Parse `HARNESS=NAME[,KEY=VALUE...]` for a flag."""
    harness, separator, model = text.partition("=")
    if not separator or not harness:
        raise click.BadParameter(f"{text!r} is not of the form HARNESS=NAME, such as lm-eval=hf")
    return harness, _model(model)


@click.command(short_help="Submit suites, each with each of some models.")
@click.argument("suites", metavar="SUITE...", nargs=-1, required=True, shell_complete=completion.suites)
@click.option(
    "--model",
    "models",
    type=_model,
    multiple=True,
    metavar="[NAME][,K=V...]",
    help="Evaluate this model: its type, and its arguments. May be repeated: each is a run of its own.",
)
@click.option(
    "--harness-model",
    "harness_models",
    type=_harness_model,
    callback=require_once_each,
    multiple=True,
    metavar="HARNESS=NAME[,K=V...]",
    help="For jobs of this harness, use this model type, and these arguments besides. May be repeated.",
)
@click.option("--wait", is_flag=True, help="Wait until all have ended, and decide over them; exit with 1 unless all are GO.")
@click.option("--wait-timeout", type=duration, metavar="DURATION", help="Wait no longer than this, then exit with 124.")
@reconnect_timeout_option
@decision_options
def submit_suite_command(
    suites: tuple[str, ...],
    models: tuple[Model, ...],
    harness_models: tuple[tuple[str, Model], ...],
    wait: bool,
    wait_timeout: timedelta | None,
    reconnect_timeout: timedelta,
    baseline: str | None,
    address: str | None,
    display: Display,
    **flags: Any,
) -> None:
    """Submit suites, each with each of the models, and print the id of each run. With --wait, one table has all decisions.

    A suite of several harnesses needs the model type of each:

    \b
      evalrpc submit-suite release --model pretrained=/ckpt/500 \\
          --harness-model lm-eval=hf --harness-model lmms-eval=llava_hf
    """
    common = SubmitJobRequest()
    apply_flags(common, {**dict.fromkeys(_OPTIONS), "tasks": (), **flags})
    with connect(address, SLOW_CALL_SECONDS) as client:
        baseline_id = resolve_run(client, baseline) if baseline else ""
        pairs = list(product(suites, models or (Model("", {}),)))
        runs = []
        for number, (suite, model) in enumerate(pairs, start=1):
            submission = _numbered(common, number if len(pairs) > 1 else None)
            runs.append(_submit(client, suite, model, dict(harness_models), submission, baseline_id))
        is_awaited = wait and not common.validate_only
        for run in runs:
            _print_submitted(run, display, is_awaited=is_awaited)
        if is_awaited:
            suite_run_ids = [run.suite_run_id for run in runs]
            wait_for_runs(client, suite_run_ids, wait_timeout, reconnect_timeout)
            display.show(decided(client, suite_run_ids, None))


submit_suite_command.params[3:3] = [option for option in submit_command.params if option.name in _SHARED]


def _submit(
    client: EvalClient,
    suite: str,
    model: Model,
    harness_models: Mapping[str, Model],
    submission: SubmitJobRequest,
    baseline_id: str,
) -> SuiteRun:
    model.apply(submission.request)
    of_harnesses = harness_requests(harness_models)
    return client.submit_suite(
        suite, submission.request, of_harnesses, baseline_suite_run_id=baseline_id, **suite_options(submission)
    )


def harness_requests(harness_models: Mapping[str, Model]) -> dict[str, EvaluateRequest]:
    """Return what the jobs of each harness have besides."""
    requests = {harness: EvaluateRequest() for harness in harness_models}
    for harness, request in requests.items():
        harness_models[harness].apply(request)
    return requests


def _numbered(common: SubmitJobRequest, number: int | None) -> SubmitJobRequest:
    """Return the submission of one run; of several, each with a request id of its own."""
    submission = deepcopy(common)
    if submission.request_id and number is not None:
        submission.request_id = f"{submission.request_id}-{number}"
    return submission


def _print_submitted(run: SuiteRun, display: Display, *, is_awaited: bool) -> None:
    """Print the id of a run, or all of it as JSON; on stderr where what is printed later is the decision."""
    if display.is_json and not is_awaited:
        print_json_line(run)
    elif run.suite_run_id:
        print_line(run.suite_run_id, err=is_awaited)
    else:
        print_line(f"the suite {run.suite.name} is valid with {model_name(run) or 'no model'}: {len(run.jobs)} jobs")
