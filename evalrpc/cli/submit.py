"""`evalrpc submit`: a flag for every field of the request and every option of the submission."""

import json
import re
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import click
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from evalrpc.cli import completion, wording
from evalrpc.cli.connection import connect, table_options
from evalrpc.cli.following import follow
from evalrpc.cli.job_ids import resolve
from evalrpc.cli.output import Form, print_json, print_json_line, print_line
from evalrpc.cli.parameters import (
    argument_value,
    arguments,
    duration,
    label,
    labels_option,
    once_each,
    reconnect_timeout_option,
    require_once_each,
    split_commas,
    watch_option,
)
from evalrpc.cli.suggestions import did_you_mean
from evalrpc.client import EvalClient, SubmitOptions, values
from evalrpc.client.arguments import parse_value
from evalrpc.client.core import SuiteOptions
from evalrpc.v1.jobs_pb2 import CACHE_MODE_ALLOW, GPU_MODE_DATA_PARALLEL, GPU_MODE_MODEL_PARALLEL, JobInfo, SubmitJobRequest

REQUEST_FIELDS: Final = (
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
    "gpu_mode",
    "max_bad_answer_ratio",
    "preparation",
    "executor",
)
_GPU_MODES: Final = {"data-parallel": GPU_MODE_DATA_PARALLEL, "model-parallel": GPU_MODE_MODEL_PARALLEL}
_SERVED_FLAGS: Final = {
    "engine": ("served_model", "engine"),
    "served_model": ("served_model", "model"),
    "served_revision": ("served_model", "revision"),
    "engine_gpus": ("served_model", "num_gpus"),
    "engine_replicas": ("served_model", "max_replicas"),
    "judge_engine": ("judge_model", "engine"),
    "judge_model": ("judge_model", "model"),
    "judge_revision": ("judge_model", "revision"),
    "judge_gpus": ("judge_model", "num_gpus"),
    "judge_replicas": ("judge_model", "max_replicas"),
}
"""What flags set of models that engines serve: the field of the request, and the one in it."""
_SERVED_ARGS_FLAGS: Final = {"engine_args": "served_model", "judge_args": "judge_model"}
_UNKNOWN_FIELD: Final = re.compile(r'has no field named "(?P<name>[^"]*)".*Available Fields[^\[]*(?P<known>\[.*\])', re.DOTALL)
ENGINE_FLAGS: Final = (*_SERVED_FLAGS, *_SERVED_ARGS_FLAGS)
SUBMISSION_FIELDS: Final = (
    "request_id",
    "priority",
    "max_attempts",
    "supersede_key",
    "validate_only",
    "cache",
    "preemptible",
)


@click.command(short_help="Submit an evaluation.")
@click.option("--file", "file", metavar="FILE", help="Read an EvaluateRequest or SubmitJobRequest as JSON; - reads stdin.")
@click.option("--like", metavar="JOB", shell_complete=completion.jobs, help="Take the request, options and labels of this job.")
@click.option(
    "--harness",
    shell_complete=completion.harnesses,
    metavar="NAME",
    help="Run it with this harness. Default: the server's, see `evalrpc info`.",
)
@click.option(
    "--model",
    shell_complete=completion.models,
    metavar="NAME",
    help="Evaluate a model of this type; `evalrpc models` lists them.",
)
@click.option(
    "--tasks",
    multiple=True,
    shell_complete=completion.tasks,
    metavar="A,B",
    help="Evaluate on these tasks; `evalrpc tasks` lists them. May be repeated.",
)
@click.option("--model-args", type=arguments, metavar="JSON|k=v,...", help="Pass these arguments to the model.")
@click.option(
    "--num-fewshot", type=int, metavar="N", help="Show this many examples before each question. Default: the task's own."
)
@click.option("--batch-size", metavar="N|auto", help="Put this many examples into a forward pass. Default: the harness's own.")
@click.option("--device", metavar="NAME", help="Use this torch device, such as cuda or cpu. Default: the harness's choice.")
@click.option(
    "--limit", type=float, metavar="N", help="Evaluate this many documents per task, or this fraction below 1. Default: all."
)
@click.option("--gen-kwargs", type=arguments, metavar="JSON|k=v,...", help="Pass these arguments to the generation.")
@click.option(
    "--task-arg",
    "task_args",
    type=label,
    callback=require_once_each,
    multiple=True,
    metavar="K=V",
    help="Give the tasks this argument, such as epochs=3; V may be JSON. May be repeated.",
)
@click.option("--log-samples/--no-log-samples", default=None, help="Keep the prediction for each sample. Default: yes.")
@click.option("--predict-only", is_flag=True, default=None, help="Only generate predictions, and compute no metrics.")
@click.option(
    "--num-gpus", type=int, metavar="N", help="Hold this many GPUs; 0 holds none. Default: the server's, see `evalrpc info`."
)
@click.option(
    "--gpu-mode",
    type=click.Choice(["data-parallel", "model-parallel"]),
    callback=lambda _context, _option, name: None if name is None else _GPU_MODES[name],
    help="Run a process per GPU, or one that sees all. Default: as suits the model.",
)
@click.option(
    "--max-bad-answer-ratio",
    type=float,
    metavar="RATIO",
    help="Fail if a larger share of a task's answers failed or are empty. Default: 1.",
)
@click.option(
    "--secret", "secrets", multiple=True, metavar="NAME", help="Give the run this secret of the operator's. May be repeated."
)
@click.option("--preparation", metavar="NAME", help="Prepare the model's folder like this; the operator says what there is.")
@click.option("--executor", metavar="NAME", help="Place the run here: `local`, or a cluster of the operator's.")
@click.option("--engine", metavar="NAME", help="Ask this engine or endpoint of the operator's; see `evalrpc engines`.")
@click.option("--served-model", metavar="MODEL", help="The model that it loads or has, in place of --model.")
@click.option("--served-revision", metavar="REVISION", help="Its commit, branch or tag, if it is a repository of the hub.")
@click.option(
    "--engine-arg",
    "engine_args",
    type=label,
    callback=require_once_each,
    multiple=True,
    metavar="K=V",
    help="Give the engine this argument. May be repeated.",
)
@click.option("--engine-gpus", type=int, metavar="N", help="Have the engine hold this many GPUs. Default: as --num-gpus.")
@click.option(
    "--engine-replicas",
    type=int,
    metavar="N",
    help="Have up to this many processes answer, as GPUs are free. Default: 1.",
)
@click.option(
    "--judge-engine", metavar="NAME", help="Have the answers judged at this engine or endpoint; see `evalrpc engines`."
)
@click.option("--judge-model", metavar="MODEL", help="The model that judges the answers.")
@click.option("--judge-revision", metavar="REVISION", help="Its commit, branch or tag, if it is a repository of the hub.")
@click.option(
    "--judge-arg",
    "judge_args",
    type=label,
    callback=require_once_each,
    multiple=True,
    metavar="K=V",
    help="Give the judge's engine this argument. May be repeated.",
)
@click.option(
    "--judge-gpus", type=int, metavar="N", help="Have the judge's engine hold this many GPUs. Default: as --num-gpus."
)
@click.option(
    "--judge-replicas", type=int, metavar="N", help="Have up to this many processes judge, as GPUs are free. Default: 1."
)
@click.option("--output-dir", metavar="DIR", help="Write the results to this folder on the server.")
@click.option("--tasks-separately", is_flag=True, default=None, help="Run the tasks one by one, each with its results at once.")
@click.option("--request-id", metavar="ID", help="Make the submission safe to repeat with this id. Default: a fresh one.")
@click.option("--priority", type=int, metavar="N", help="Start before jobs of a lower priority. Default: 0.")
@labels_option("Give the job this label.")
@click.option(
    "--timeout", type=duration, metavar="DURATION", help="End an attempt that runs longer, such as 2h. Default: never."
)
@click.option("--max-attempts", type=int, metavar="N", help="Try at most this often in all. Default: 1.")
@click.option("--supersede-key", metavar="KEY", help="Cancel the queued jobs that have the same key.")
@click.option("--validate-only", is_flag=True, default=None, help="Only check the request, and queue nothing.")
@click.option(
    "--cache", flag_value=CACHE_MODE_ALLOW, type=int, help="Share the run of a job of an identical evaluation, if there is one."
)
@click.option("--preemptible", is_flag=True, default=None, help="Give way, while it runs, to a job that comes first.")
@watch_option
@reconnect_timeout_option
@table_options
def submit_command(
    file: str | None, like: str | None, watch: bool, reconnect_timeout: timedelta, address: str | None, form: Form, **flags: Any
) -> None:
    """Submit an evaluation and print the id of its job. Flags override what --file or --like says."""
    if file and like:
        raise click.UsageError("give either --file or --like, not both")
    submission = read_submission(file) if file else SubmitJobRequest()
    with connect(address) as client:
        if like:
            submission = submission_of(client.get_job(resolve(client, like)))
        apply_flags(submission, flags)
        submit(client, submission, watch=watch, reconnect_timeout=reconnect_timeout, form=form)


def submit(client: EvalClient, submission: SubmitJobRequest, *, watch: bool, reconnect_timeout: timedelta, form: Form) -> None:
    """Submit, print the id of the job, and follow it if asked to."""
    job = client.submit(submission.request, **submit_options(submission))
    for warning in job.warnings:
        print_line(f"evalrpc: {warning}", err=True)
    if submission.cache == CACHE_MODE_ALLOW and job.job_id:
        print_line(f"evalrpc: {wording.sharing(job)}", err=True)
    if watch and job.job_id:
        _print_id(job, form)
        follow(client, job.job_id, reconnect_timeout, form)
    elif form is Form.JSON:
        print_json(job)
    elif form is Form.JSONL:
        print_json_line(job)
    else:
        _print_submitted(job)


def submission_of(job: JobInfo) -> SubmitJobRequest:
    """Return what submits the evaluation of a job once more. The name of a baseline stays with the job."""
    return SubmitJobRequest(
        request=job.request,
        priority=job.priority,
        labels={key: value for key, value in job.labels.items() if key != wording.BASELINE_LABEL},
        timeout=job.timeout if job.HasField("timeout") else None,
        max_attempts=job.max_attempts,
        supersede_key=job.supersede_key,
        preemptible=job.preemptible,
    )


def read_submission(file: str, parameter: str = "--file") -> SubmitJobRequest:
    """Read a SubmitJobRequest, or an EvaluateRequest, from protobuf JSON. Raises click.UsageError, naming the parameter."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        return _parse_submission(json.loads(text, object_pairs_hook=once_each))
    except OSError as error:
        raise click.UsageError(f"{parameter} {file}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise click.UsageError(f"{parameter} {file}: is no JSON: {error}") from error
    except (ValueError, json_format.ParseError) as error:
        raise click.UsageError(f"{parameter} {file}: {_in_words(str(error))}") from error


def _in_words(problem: str) -> str:
    """Say shortly what protobuf's parser says at length: that there is no such field."""
    unknown = _UNKNOWN_FIELD.search(problem)
    if unknown is None:
        return problem
    known = re.findall(r"'(\w+)'", unknown["known"])
    hint = did_you_mean(unknown["name"], known)
    return f"there is no field {unknown['name']!r}" + (f"; there are: {', '.join(known)}" if hint == "." else hint)


def _parse_submission(values: Any) -> SubmitJobRequest:
    if not isinstance(values, dict):
        raise ValueError("is no JSON object")  # noqa: TRY004 (of what a person wrote)
    return json_format.ParseDict(values if "request" in values else {"request": values}, SubmitJobRequest())


def apply_flags(submission: SubmitJobRequest, flags: Mapping[str, Any]) -> None:
    """Set the fields whose flags are not None. Raises click.UsageError for a number that does not fit its field."""
    try:
        for name in REQUEST_FIELDS:
            _set(submission.request, name, flags[name])
        for name in SUBMISSION_FIELDS:
            _set(submission, name, flags[name])
        _apply_compound_flags(submission, flags)
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error


def _apply_compound_flags(submission: SubmitJobRequest, flags: Mapping[str, Any]) -> None:
    if flags["tasks"]:
        submission.request.tasks[:] = split_commas(flags["tasks"])
    if flags["secrets"]:
        submission.request.secrets[:] = flags["secrets"]
    for name in ("model_args", "gen_kwargs"):
        if flags[name] is not None:
            getattr(submission.request, name).CopyFrom(values.arguments(name, flags[name]))
    if flags["task_args"]:
        given = values.arguments("task_args", {name: argument_value(text) for name, text in flags["task_args"]})
        submission.request.task_args.MergeFrom(given or Struct())
    _apply_engine_flags(submission, flags)
    submission.labels.update(dict(flags["labels"]))
    if flags["timeout"] is not None:
        submission.timeout.FromTimedelta(flags["timeout"])


def _apply_engine_flags(submission: SubmitJobRequest, flags: Mapping[str, Any]) -> None:
    for flag, (field, name) in _SERVED_FLAGS.items():
        if flags[flag] is not None:
            setattr(getattr(submission.request, field), name, flags[flag])
    for flag, field in _SERVED_ARGS_FLAGS.items():
        if flags[flag]:
            args = values.arguments(f"{field}.args", {key: parse_value(text) for key, text in flags[flag]})
            getattr(submission.request, field).args.MergeFrom(args or Struct())


def submit_options(submission: SubmitJobRequest) -> SubmitOptions:
    """Extract the options of a job from the message."""
    return SubmitOptions(supersede_key=submission.supersede_key, **suite_options(submission))


def suite_options(submission: SubmitJobRequest) -> SuiteOptions:
    """Extract the options from the message that a suite has, too."""
    return SuiteOptions(
        request_id=submission.request_id,
        priority=submission.priority,
        labels=submission.labels,
        timeout=submission.timeout.ToTimedelta() if submission.HasField("timeout") else None,
        max_attempts=submission.max_attempts or 1,  # as the Python client says it, so that both submit the same
        validate_only=submission.validate_only,
        cache=submission.cache == CACHE_MODE_ALLOW,
        preemptible=submission.preemptible,
    )


def _set(message: Any, name: str, value: Any) -> None:
    if value is not None:
        setattr(message, name, value)


def _print_id(job: JobInfo, form: Form) -> None:
    """Print the id of a job that is to be followed on the first line, unless a program reads events, which have it, or CSV."""
    if form not in (Form.JSON, Form.JSONL):
        print_line(job.job_id, err=form is Form.CSV)


def _print_submitted(job: JobInfo) -> None:
    if not job.job_id:
        print_line("the request is valid")
        return
    print_line(job.job_id)
    if sys.stderr.isatty():
        print_line(f"to watch it: evalrpc watch {job.job_id}", err=True)
