"""The commands that show what a server offers."""

from collections.abc import Callable, Iterable
from typing import Final

import click
from google.protobuf.message import Message

from evalrpc.cli import completion, wording
from evalrpc.cli.connection import SLOW_CALL_SECONDS, connect, table_options
from evalrpc.cli.output import Form, print_facts, print_items, print_line, print_table
from evalrpc.cli.tables import Cell, Column, Kind
from evalrpc.v1.catalog_pb2 import GetServerInfoResponse, ListHarnessesResponse, ListModelsResponse, ListTasksResponse

_HARNESS_COLUMNS: Final = (
    Column("harness"),
    Column("kind"),
    Column("version", Kind.WHOLE),
    Column("available"),
    Column("warm"),
)

_harness_option = click.option(
    "--harness",
    default="",
    shell_complete=completion.harnesses,
    metavar="NAME",
    help="Ask this harness. Default: the server's.",
)


@click.command(short_help="List the tasks of a harness.")
@click.argument("query", default="", shell_complete=completion.tasks)
@_harness_option
@table_options
def tasks_command(query: str, harness: str, address: str | None, form: Form) -> None:
    """List the tasks of a harness whose names contain QUERY."""
    with connect(address, SLOW_CALL_SECONDS) as client:
        _print_names(form, "task", client.list_tasks(query, harness), lambda names: ListTasksResponse(tasks=names))


@click.command(short_help="List the model types of a harness.")
@click.argument("query", default="", shell_complete=completion.models)
@_harness_option
@table_options
def models_command(query: str, harness: str, address: str | None, form: Form) -> None:
    """List the model types of a harness whose names contain QUERY."""
    with connect(address, SLOW_CALL_SECONDS) as client:
        _print_names(form, "model", client.list_models(query, harness), lambda names: ListModelsResponse(models=names))


@click.command(short_help="List the harnesses of the server.")
@table_options
def harnesses_command(address: str | None, form: Form) -> None:
    """List the harnesses that are configured on the server."""
    with connect(address) as client:
        harnesses = client.list_harnesses()
    rows = [
        (h.name, h.kind, h.version, _or_reason(h.available, h.unavailable_reason), _or_reason(h.warm, h.cold_reason))
        for h in harnesses
    ]
    print_items(form, _HARNESS_COLUMNS, rows, harnesses, ListHarnessesResponse(harnesses=harnesses))


def _or_reason(holds: bool, reason: str) -> str:
    return "yes" if holds else reason or "no"


@click.command(short_help="Show the version, limits and calls of the server.")
@table_options
def info_command(address: str | None, form: Form) -> None:
    """Show the version, the limits and the calls of the server."""
    with connect(address) as client:
        info = client.get_server_info()
    print_facts(form, _facts(info), info)


def _print_names(form: Form, column: str, names: Iterable[str], message_of: Callable[[list[str]], Message]) -> None:
    """Print plain lines, without a header unless as CSV: a list of names is no table."""
    if form in (Form.JSON, Form.JSONL):
        listed = list(names)
        print_items(form, (), (), (message_of([name]) for name in listed), message_of(listed))
        return
    if form is Form.CSV:
        print_table(form, [Column(column)], ([name] for name in names))
        return
    for name in names:
        print_line(name)


def _facts(info: GetServerInfoResponse) -> list[tuple[str, Cell]]:
    facts = [
        ("version", info.version),
        ("started", wording.time_text(info.started_at)),
        ("GPUs", str(info.gpu_count)),
        ("default harness", info.default_harness),
        ("default GPUs of a job", str(info.default_num_gpus) if info.HasField("default_num_gpus") else ""),
        ("running at most", f"{info.max_running} jobs"),
        ("queued at most", f"{info.max_queued} jobs"),
        ("request at most", f"{info.max_request_bytes} bytes"),
        ("revisions", f"{info.oldest_revision} to {info.head_revision}"),
        ("calls", ", ".join(info.capabilities)),
    ]
    return [(name, value) for name, value in facts if value]
