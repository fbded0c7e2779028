"""`evalrpc submit`: a flag for every field of the request and every option of the submission."""

import json
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import click
from google.protobuf import json_format

from evalrpc.cli import wording
from evalrpc.cli.connection import client_options, connect
from evalrpc.cli.following import follow
from evalrpc.cli.output import print_json
from evalrpc.cli.parameters import arguments, duration, label, split_commas
from evalrpc.client import SubmitOptions, values
from evalrpc.v1.jobs_pb2 import CACHE_MODE_ALLOW, JobInfo, SubmitJobRequest

_REQUEST_FIELDS: Final = (
    "harness",
    "model",
    "num_fewshot",
    "batch_size",
    "device",
    "limit",
    "log_samples",
    "predict_only",
    "num_gpus",
    "output_dir",
    "tasks_separately",
)
_SUBMISSION_FIELDS: Final = ("request_id", "priority", "max_attempts", "supersede_key", "validate_only", "cache")


@click.command()
@click.option("--file", "file", metavar="FILE", help="A whole EvaluateRequest or SubmitJobRequest as JSON; - reads stdin.")
@click.option("--harness", help="The harness. Default: lmms-eval.")
@click.option("--model", help="The model type, as `evalrpc models` lists them.")
@click.option("--tasks", multiple=True, metavar="A,B", help="Tasks, as `evalrpc tasks` lists them. May be repeated.")
@click.option("--model-args", type=arguments, metavar="JSON|k=v,...", help="Arguments of the model.")
@click.option("--num-fewshot", type=int, help="Examples shown before each question. Default: the task's own.")
@click.option("--batch-size", metavar="N|auto", help="Examples per forward pass.")
@click.option("--device", help="Torch device, such as cuda or cpu.")
@click.option("--limit", type=float, help="Documents per task: a number, or a fraction below 1. Default: all.")
@click.option("--gen-kwargs", type=arguments, metavar="JSON|k=v,...", help="Arguments of the generation.")
@click.option("--log-samples/--no-log-samples", default=None, help="Keep per-sample predictions. Default: yes.")
@click.option("--predict-only", is_flag=True, default=None, help="Only generate predictions, without metrics.")
@click.option("--num-gpus", type=int, help="GPUs that the job holds. Default: 1; 0 is none.")
@click.option("--output-dir", metavar="DIR", help="Folder on the server for the results.")
@click.option("--tasks-separately", is_flag=True, default=None, help="Run the tasks one by one, with results of each at once.")
@click.option("--request-id", metavar="ID", help="Makes the submission safe to repeat. Default: a fresh one.")
@click.option("--priority", type=int, help="Higher starts first. Default: 0.")
@click.option("--label", "labels", type=label, metavar="K=V", multiple=True, help="A label to filter by. May be repeated.")
@click.option("--timeout", type=duration, help="Bound on the run time of an attempt, such as 2h. Default: none.")
@click.option("--max-attempts", type=int, help="How often the job may be tried in all. Default: 1.")
@click.option("--supersede-key", metavar="KEY", help="Cancels queued jobs of the same key.")
@click.option("--validate-only", is_flag=True, default=None, help="Only check the request; queue nothing.")
@click.option(
    "--cache", flag_value=CACHE_MODE_ALLOW, type=int, help="An identical evaluation that was submitted so may answer."
)
@click.option("--watch", is_flag=True, help="Follow the job until it ends; exit with 1 if it does not complete.")
@click.option("--reconnect-timeout", type=duration, default="10m", show_default=True, help="With --watch; 0 is for ever.")
@client_options
def submit_command(
    file: str | None, watch: bool, reconnect_timeout: timedelta, address: str | None, as_json: bool, **flags: Any
) -> None:
    """Submit an evaluation and print the job's id. Flags override what --file says."""
    submission = read_submission(file) if file else SubmitJobRequest()
    apply_flags(submission, flags)
    with connect(address) as client:
        job = client.submit(submission.request, **submit_options(submission))
        for warning in job.warnings:
            click.echo(f"evalrpc: {warning}", err=True)
        if watch and job.job_id:
            follow(client, job.job_id, reconnect_timeout, as_json=as_json)
        elif as_json:
            print_json(job)
        else:
            _print_submitted(job)


def read_submission(file: str) -> SubmitJobRequest:
    """Read a SubmitJobRequest, or an EvaluateRequest, from protobuf JSON. Raises click.UsageError."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        return _parse_submission(json.loads(text))
    except OSError as error:
        raise click.UsageError(f"--file {file}: {error.strerror}") from error
    except (ValueError, json_format.ParseError) as error:
        raise click.UsageError(f"--file {file}: {error}") from error


def _parse_submission(values: Any) -> SubmitJobRequest:
    if not isinstance(values, dict):
        raise ValueError("is no JSON object")  # noqa: TRY004 (of what a person wrote)
    return json_format.ParseDict(values if "request" in values else {"request": values}, SubmitJobRequest())


def apply_flags(submission: SubmitJobRequest, flags: Mapping[str, Any]) -> None:
    """Set the fields whose flags are not None. Raises click.UsageError for a number that does not fit its field."""
    try:
        for name in _REQUEST_FIELDS:
            _set(submission.request, name, flags[name])
        for name in _SUBMISSION_FIELDS:
            _set(submission, name, flags[name])
        _apply_compound_flags(submission, flags)
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error


def _apply_compound_flags(submission: SubmitJobRequest, flags: Mapping[str, Any]) -> None:
    if flags["tasks"]:
        submission.request.tasks[:] = split_commas(flags["tasks"])
    for name in ("model_args", "gen_kwargs"):
        if flags[name] is not None:
            getattr(submission.request, name).CopyFrom(values.arguments(name, flags[name]))
    submission.labels.update(dict(flags["labels"]))
    if flags["timeout"] is not None:
        submission.timeout.FromTimedelta(flags["timeout"])


def submit_options(submission: SubmitJobRequest) -> SubmitOptions:
    """Extract the options from the message."""
    return SubmitOptions(
        request_id=submission.request_id,
        priority=submission.priority,
        labels=submission.labels,
        timeout=submission.timeout.ToTimedelta() if submission.HasField("timeout") else None,
        max_attempts=submission.max_attempts,
        supersede_key=submission.supersede_key,
        validate_only=submission.validate_only,
        cache=submission.cache == CACHE_MODE_ALLOW,
    )


def _set(message: Any, name: str, value: Any) -> None:
    if value is not None:
        setattr(message, name, value)


def _print_submitted(job: JobInfo) -> None:
    if not job.job_id:
        click.echo("the request is valid")
        return
    click.echo(job.job_id)
    if job.cached_from:
        click.echo(f"it shares the run of job {job.cached_from}, of the same evaluation: {wording.describe(job)}", err=True)
    if sys.stderr.isatty():
        click.echo(f"to watch it: evalrpc watch {job.job_id}", err=True)
