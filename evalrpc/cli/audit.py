"""`evalrpc audit`: what the server has recorded of changes and refusals. Reads the server's files, also while it runs."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
from google.protobuf.timestamp_pb2 import Timestamp

from evalrpc.cli import parameters, wording
from evalrpc.cli.connection import form_options
from evalrpc.cli.exit_codes import ExitCode, fail, reported, require_folder
from evalrpc.cli.output import Form, GrowingTable, print_json_text
from evalrpc.cli.setting_flags import setting_flags
from evalrpc.cli.tables import Cell, Column, Kind
from evalrpc.config import load_settings

_Entry = dict[str, Any]
_Matches = Callable[[_Entry], bool]

_COLUMNS: Final = (
    Column("time", Kind.WHOLE),
    Column("owner"),
    Column("call"),
    Column("code", Kind.WHOLE),
    Column("reason"),
    Column("job", Kind.WHOLE),
    Column("target"),
    Column("peer"),
    Column("role", only_wide=True),
    Column("sign-in", only_wide=True),
    Column("token", only_wide=True),
    Column("request id", only_wide=True),
    Column("left out", only_wide=True),
)
_TYPICAL: Final = (
    *("2026-02-14 10:30:00", "somebody", "CancelSuiteRun", "RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "0" * 36),
    *("token 0123456789ab", "ipv4:127.0.0.1:50000", *[""] * 5),
)
"""Whatever the outcome, so that the columns stay where they are."""
_REFUSED: Final = "refused"


@click.command(short_help="Show who has changed what, and who was refused.")
@click.option("--owner", "owners", multiple=True, metavar="NAME", help="Show calls of this owner; '' is nobody signed in.")
@click.option("--call", "calls", multiple=True, metavar="NAME", help="Show these calls: CancelJob, 'token create'.")
@click.option("--job", metavar="ID", help="Show calls that concern this job; the first characters of its id will do.")
@click.option(
    "--outcome",
    "outcomes",
    multiple=True,
    metavar="CODE",
    help="Show calls with this code or reason (OK, PERMISSION_DENIED, QUOTA_EXCEEDED), or all that were refused.",
)
@click.option(
    "--since", type=parameters.time, metavar="TIME", help="Show calls from this time on: 2026-02-14T10:30, or 2h ago."
)
@setting_flags("data_dir", "audit_file")
@form_options
def audit_command(
    owners: Sequence[str],
    calls: Sequence[str],
    job: str | None,
    outcomes: Sequence[str],
    since: Timestamp | None,
    form: Form,
    config: Path | None,
    **flags: Any,
) -> None:
    """Show who has changed what, and who was refused, the oldest first.

    This reads the file of the audit, and those that it was rotated into, so it runs on the server's machine, as its account.
    """
    conditions = _conditions(owners, calls, job, outcomes, since)
    from evalrpc.server.audit_file import audit_file

    with reported():
        settings = load_settings(flags, os.environ, config)
    if settings.audit_file is None:
        require_folder(settings.data_dir)
    file = audit_file(settings)
    try:
        _print(form, (entry for entry in file.read() if all(matches(entry) for matches in conditions)))
    except OSError as error:
        fail(ExitCode.WRONG_CALL, f"can't read the audit: {error.filename}: {error.strerror}")


def _conditions(
    owners: Sequence[str], calls: Sequence[str], job: str | None, outcomes: Sequence[str], since: Timestamp | None
) -> Sequence[_Matches]:
    conditions: list[_Matches] = []
    if owners:
        conditions.append(lambda entry: entry.get("owner") in owners)
    if calls:
        wanted_calls = {call.lower() for call in calls}
        conditions.append(lambda entry: str(entry.get("call")).lower() in wanted_calls)
    if job:
        conditions.append(lambda entry: str(entry.get("job_id")).lower().startswith(job.lower()))
    if outcomes:
        wanted = {outcome.lower() for outcome in outcomes}
        conditions.append(lambda entry: not wanted.isdisjoint(_outcomes(entry)))
    if since is not None:
        start = since.ToDatetime(UTC)
        conditions.append(lambda entry: _time(entry) >= start)
    return conditions


def _outcomes(entry: _Entry) -> Iterator[str]:
    """Yield all names of an entry's outcome, in small letters."""
    from evalrpc.server.audit_file import REFUSALS

    yield str(entry.get("code")).lower()
    yield str(entry.get("reason")).lower()
    if entry.get("code") in REFUSALS:
        yield _REFUSED


def _time(entry: _Entry) -> datetime:
    """Return when it was; 1970 if nobody can tell."""
    try:
        return datetime.fromisoformat(str(entry.get("time"))).astimezone(UTC)
    except (ValueError, OverflowError):
        return datetime.fromtimestamp(0, UTC)


def _print(form: Form, entries: Iterator[_Entry]) -> None:
    if form in (Form.JSON, Form.JSONL):
        for entry in entries:
            print_json_text(json.dumps(entry))
        return
    table = GrowingTable(form, _COLUMNS, _TYPICAL)
    for entry in entries:
        table.print_row(_row(entry))
    table.print_header()


def _row(entry: _Entry) -> Sequence[Cell]:
    time = Timestamp()
    time.FromDatetime(_time(entry))
    names = ("owner", "call", "code", "reason", "job_id", "target", "peer", "role", "sign_in_method", "token_id", "request_id")
    return wording.time_text(time), *(str(entry.get(name, "")) for name in names), entry.get("left_out", 0)
