"""`evalrpc rerun`: the evaluation of a job once more, with some things changed."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import click

from evalrpc.cli.connection import connect, table_options
from evalrpc.cli.job_ids import job_argument, resolve
from evalrpc.cli.output import Form
from evalrpc.cli.parameters import argument_value, label, reconnect_timeout_option, watch_option
from evalrpc.cli.submit import (
    ENGINE_FLAGS,
    REQUEST_FIELDS,
    SUBMISSION_FIELDS,
    apply_flags,
    submission_of,
    submit,
    submit_command,
)
from evalrpc.cli.suggestions import did_you_mean
from evalrpc.client import values
from evalrpc.client.arguments import parse_value
from evalrpc.v1.jobs_pb2 import SubmitJobRequest

_DICTS: Final = ("model_args", "gen_kwargs", "task_args")
_KEYS: Final = (*REQUEST_FIELDS, *ENGINE_FLAGS, *SUBMISSION_FIELDS, *_DICTS, "secrets", "tasks", "timeout")
_DOTTED: Final = (*(f"{name}.KEY" for name in _DICTS), "label.KEY")
_REPEATABLE: Final = ("tasks", "secrets", "labels", "task_args", "engine_args", "judge_args")
_OPTIONS: Final = {option.name: option for option in submit_command.params if isinstance(option, click.Option)}


@click.command(short_help="Submit the evaluation of a job once more.")
@job_argument()
@click.option(
    "--set",
    "settings",
    type=label,
    multiple=True,
    metavar="KEY=VALUE",
    help="Change this, such as limit=8, model_args.pretrained=acme/model, label.step=600. May be repeated.",
)
@watch_option
@reconnect_timeout_option
@table_options
def rerun_command(
    job_id: str, settings: Sequence[tuple[str, str]], watch: bool, reconnect_timeout: timedelta, address: str | None, form: Form
) -> None:
    """Submit the evaluation of a job once more, with the same options and labels, and print the id of the new job.

    A KEY is a flag of `evalrpc submit` with underscores, such as num_gpus, or an entry of model_args, gen_kwargs, task_args or
    the labels. VALUE is as for the flag, and true or false for one without a value.

    The name of a baseline stays with the old job.
    """
    with connect(address) as client:
        submission = submission_of(client.get_job(resolve(client, job_id)))
        for key, value in settings:
            _apply(submission, key, value)
        submit(client, submission, watch=watch, reconnect_timeout=reconnect_timeout, form=form)


def _apply(submission: SubmitJobRequest, key: str, text: str) -> None:
    """Set one thing. Raises click.UsageError."""
    name, _, entry = key.partition(".")
    if name == "label" and entry:
        submission.labels[entry] = text
    elif name in _DICTS and entry:
        _set_entry(submission, name, entry, text)
    elif key in _KEYS:
        apply_flags(submission, {**dict.fromkeys(_OPTIONS), **dict.fromkeys(_REPEATABLE, ()), key: _value(_OPTIONS[key], text)})
    else:
        keys = [*_KEYS, *_DOTTED]
        raise click.UsageError(f"--set: there is no {key!r}{did_you_mean(key, keys)} What can be set is {', '.join(keys)}.")


def _set_entry(submission: SubmitJobRequest, name: str, entry: str, text: str) -> None:
    read = argument_value if name == "task_args" else parse_value  # a list for a model stays the text that its harness reads
    try:
        struct = values.arguments(name, {entry: read(text)})
    except ValueError as error:
        raise click.UsageError(f"--set: {error}") from error
    getattr(submission.request, name).MergeFrom(struct)


def _value(option: click.Option, text: str) -> Any:
    """Return what a flag of `evalrpc submit` would be with this value."""
    context = click.get_current_context()
    if option.is_flag:
        return int(click.BOOL.convert(text, option, context))  # 1 is CACHE_MODE_ALLOW, too
    return option.process_value(context, (text,) if option.multiple else text)
