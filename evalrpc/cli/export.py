"""The commands that carry jobs into other systems."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from google.protobuf import json_format

from evalrpc import extras
from evalrpc.cli.connection import address_option, connect
from evalrpc.cli.exit_codes import ExitCode, fail, reported
from evalrpc.cli.output import print_line
from evalrpc.cli.parameters import duration, filter_options
from evalrpc.client import EvalClient
from evalrpc.exporting.follower import Follower
from evalrpc.exporting.webhook import ReceiverUnavailableError
from evalrpc.v1.jobs_pb2 import JobFilter

if TYPE_CHECKING:
    from evalrpc.exporting.follower import Target

SECRET_VARIABLE: Final = "EVALRPC_WEBHOOK_SECRET"  # noqa: S105 - its name
_STATE_NAME: Final = "_evalrpc-export.json"
"""Begins with a `_`, so that what reads the folder as one table leaves it out."""
_EARLIER_STATE_NAME: Final = "evalrpc-export.json"

_Command = Callable[..., Any]


@click.group(name="export", short_help="Carry jobs that have ended into another system.")
def export_command() -> None:
    """Export each job that ends, from the first one on or from where the last export stopped.

    The state file says how far that is. A job is exported again if the exporter dies before it could note that, never left out.
    """


def _export_options(function: _Command) -> _Command:
    """Add the options that all exports have."""
    once = click.option("--once", is_flag=True, help="Export what has ended by now, and exit. Default: go on until Ctrl-C.")
    return address_option(filter_options(once(function)))


_state_option: Final = click.option(
    "--state",
    "state_path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file that says how far the export is. Made if it is missing.",
)


@export_command.command(name="webhook", short_help="Send each job to a URL.")
@click.argument("url")
@_state_option
@click.option(
    "--secret-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"A file with secrets to sign with, `whsec_...`, one a line. Default: {SECRET_VARIABLE}, else nothing is signed.",
)
@click.option(
    "--give-up-after", type=duration, metavar="TIME", help="Exit when a message is not taken for so long. Default: never."
)
@_export_options
def webhook_command(
    url: str,
    state_path: Path,
    secret_file: Path | None,
    give_up_after: timedelta | None,
    job_filter: JobFilter,
    once: bool,
    address: str | None,
) -> None:
    """POST each job as JSON, signed as Standard Webhooks says, and again until it is taken."""
    from evalrpc.exporting.webhook import WebhookTarget

    def target(_: EvalClient) -> "Target":
        text = secret_file.read_text() if secret_file else os.environ.get(SECRET_VARIABLE, "")
        give_up_seconds = give_up_after.total_seconds() if give_up_after is not None else None
        return WebhookTarget(url, text.split(), give_up_seconds, _note)

    _run(target, job_filter, state_path, f"webhook {url}", address, once=once)


@export_command.command(name="mlflow", short_help="Make each job a run of MLflow.")
@click.option("--experiment", default="evalrpc", show_default=True, help="The experiment, made if it is missing.")
@click.option("--tracking-uri", help="The tracking server. Default: MLFLOW_TRACKING_URI, else as MLflow's own default.")
@_state_option
@_export_options
def mlflow_command(
    experiment: str, tracking_uri: str | None, state_path: Path, job_filter: JobFilter, once: bool, address: str | None
) -> None:
    """Make each job a run with its parameters, labels and metrics. A job has one run, however often it is exported."""

    def target(client: EvalClient) -> "Target":
        with _library("mlflow"):
            from evalrpc.exporting.mlflow_runs import MlflowTarget
        return MlflowTarget(client, experiment, tracking_uri)

    _run(target, job_filter, state_path, f"mlflow {experiment}", address, once=once)


@export_command.command(name="wandb", short_help="Make each job a run of Weights & Biases.")
@click.option("--project", default="evalrpc", show_default=True, help="The project.")
@click.option("--entity", help="The user or team. Default: that of the account.")
@_state_option
@_export_options
def wandb_command(
    project: str, entity: str | None, state_path: Path, job_filter: JobFilter, once: bool, address: str | None
) -> None:
    """Make each job a run with its parameters, labels and metrics. WANDB_MODE=offline writes files for `wandb sync`."""

    def target(client: EvalClient) -> "Target":
        with _library("wandb"):
            from evalrpc.exporting.wandb_runs import WandbTarget
        return WandbTarget(client, project, entity)

    _run(target, job_filter, state_path, f"wandb {project}", address, once=once)


@export_command.command(name="parquet", short_help="Write jobs to files of Parquet.")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@_export_options
def parquet_command(folder: Path, job_filter: JobFilter, once: bool, address: str | None) -> None:
    """Write a row per metric of each job, none twice, to files in a folder. The state is in the folder, too."""

    def target(client: EvalClient) -> "Target":
        with _library("parquet"):
            from evalrpc.exporting.parquet_files import ParquetTarget
        folder.mkdir(parents=True, exist_ok=True)
        return ParquetTarget(client, folder)

    earlier = folder / _EARLIER_STATE_NAME
    if earlier.exists():
        with reported():
            earlier.replace(folder / _STATE_NAME)
    _run(target, job_filter, folder / _STATE_NAME, "parquet", address, once=once)


def _run(
    build: Callable[[EvalClient], "Target"],
    job_filter: JobFilter,
    state_path: Path,
    target_name: str,
    address: str | None,
    *,
    once: bool,
) -> None:
    """Export to the target that `build` makes."""
    named_filter = json_format.MessageToJson(job_filter, indent=None, sort_keys=True)
    with connect(address) as client:
        follower = Follower(client, build(client), job_filter, state_path, f"{target_name} {named_filter}", _note)
        try:
            follower.run(once=once)
        except ReceiverUnavailableError as error:
            fail(ExitCode.UNREACHABLE, error.message)
        print_line(f"exported {follower.exported_count} jobs")


@contextmanager
def _library(extra: str) -> Iterator[None]:
    """Say what to install when the library of a target is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        fail(ExitCode.WRONG_CALL, extras.missing(error, extra))


def _note(text: str) -> None:
    print_line(text, err=True)
