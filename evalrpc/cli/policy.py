"""`evalrpc policy check`: whether a server with these settings would accept a request."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import click

from evalrpc import extras
from evalrpc.cli.connection import form_options
from evalrpc.cli.exit_codes import ExitCode, fail, reported, require_linux
from evalrpc.cli.output import Form, is_terminal, print_folded, print_json_text, print_line, print_table
from evalrpc.cli.setting_flags import setting_flags
from evalrpc.cli.submit import read_submission
from evalrpc.cli.suggestions import SuggestingGroup
from evalrpc.cli.tables import Column, Kind
from evalrpc.config import Settings, load_settings
from evalrpc.v1.jobs_pb2 import SubmitJobRequest

_COLUMNS: Final = (Column("field", Kind.WHOLE), Column("reason", Kind.WHOLE), Column("problem"))


@click.group(cls=SuggestingGroup, short_help="Check what a server's settings let requests ask for.")
def policy_command() -> None:
    """Check what a server's settings let requests ask for, without a server."""


@policy_command.command("check", short_help="Say whether a server with these settings would accept a request.")
@click.argument("file", metavar="FILE")
@click.option("--harness", metavar="NAME", help="Check it for this harness instead of the one that it names.")
@click.option("--owner", metavar="NAME", default="", help="Check it for a job of this owner. Default: of nobody signed in.")
@setting_flags("gpus")
@form_options
def check_command(file: str, harness: str | None, owner: str, config: Path | None, form: Form, gpus: str | None) -> None:
    """Say whether a server with these settings would accept a request, and what refuses it. Exits with 1 if it is refused.

    FILE is an EvaluateRequest or SubmitJobRequest as JSON; - reads stdin. Nothing is submitted, and no server is needed.
    Whether there are enough GPUs is not checked: the request may be meant for another machine.
    """
    require_linux()
    submission = read_submission(file, "FILE")
    if harness is not None:
        submission.request.harness = harness
    with reported():
        settings = load_settings({"gpus": gpus}, os.environ, config)
        try:
            refused = _judge(submission, settings, owner)
        except ModuleNotFoundError as error:
            fail(ExitCode.WRONG_CALL, extras.missing(error, "server"))
    if not refused:
        print_line(f"accepted, for harness {submission.request.harness}", err=form is not Form.TABLE)
        return
    _print(form, refused)
    fail(ExitCode.NOT_PASSED, f"refused: {len(refused)} {'field' if len(refused) == 1 else 'fields'}")


class _Refused(NamedTuple):
    """A field, and what a server has against it."""

    field: str
    reason: str
    problem: str


def _judge(submission: SubmitJobRequest, settings: Settings, owner: str) -> Sequence[_Refused]:
    """Return what a server would refuse, also what it would name only once the rest is put right; nothing if it would accept
    the submission. Raises ConfigurationError."""
    from evalrpc.executors.local.gpus import find_gpus
    from evalrpc.harnesses.registry import build_harnesses
    from evalrpc.jobs.defaults import request_defaults
    from evalrpc.server.admission import Admission

    defaults = request_defaults(settings, len(find_gpus(settings.gpus, os.environ)))
    counts = {executor: [sys.maxsize] for executor in ("", *settings.executors)}
    refused: dict[str, _Refused] = {}
    for error in Admission(settings, build_harnesses(settings), defaults).judge(submission, owner, counts):
        for field, problem in error.violations:
            refused.setdefault(field, _Refused(field, error.reason, problem))  # what is invalid breaks other rules, too
    return list(refused.values())


def _print(form: Form, refused: Sequence[_Refused]) -> None:
    if form in (Form.JSON, Form.JSONL):
        for one in refused:
            print_json_text(json.dumps(one._asdict()))
    elif form is Form.TABLE and is_terminal():
        print_folded((one.field, f"{one.reason}: {one.problem}") for one in refused)
    else:
        print_table(form, _COLUMNS, refused)
