"""The commands about suites and their runs, but for that which submits them."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import islice
from typing import Final

import click

from evalrpc.cli import completion, wording
from evalrpc.cli.connection import SLOW_CALL_SECONDS, client_options, connect, table_options
from evalrpc.cli.job_table import label_columns_option
from evalrpc.cli.output import Form, print_items, print_json, print_line
from evalrpc.cli.parameters import (
    duration,
    joined,
    limit_option,
    reconnect_timeout_option,
    selector_option,
    status_option,
    statuses_of,
)
from evalrpc.cli.suite_decisions import Display, decided, decision_options
from evalrpc.cli.suite_following import wait_for_runs, watch_run
from evalrpc.cli.suite_runs import model_name, resolve_run, run_argument
from evalrpc.cli.tables import Cell, Column, Kind
from evalrpc.jobs.metric_selectors import selector_text
from evalrpc.v1.suites_pb2 import Suite, SuiteRun

_LARGEST_PAGE: Final = 1000

_COLUMNS: Final = (
    Column("suite"),
    Column("entry"),
    Column("harness"),
    Column("tier", Kind.NUMBER),
    Column("required", Kind.WHOLE),
    Column("threshold", Kind.NUMBER, "g"),
    Column("tolerance", Kind.NUMBER, "g"),
    Column("metrics"),
    Column("shots", Kind.NUMBER),
    Column("limit", Kind.NUMBER, "g"),
    Column("tasks"),
    Column("description", only_wide=True),
)


@click.command(short_help="List the suites that the operator has defined.")
@table_options
def suites_command(address: str | None, form: Form) -> None:
    """List the suites that the operator has defined, with a row for each entry."""
    with connect(address) as client:
        suites = list(client.list_suites())
    print_items(form, _COLUMNS, (row for suite in suites for row in _rows(suite)), suites)


@click.command(short_help="List suite runs, newest first.")
@click.option(
    "--suite",
    "suites",
    multiple=True,
    shell_complete=completion.suites,
    metavar="NAME",
    help="Only runs of this suite. May be repeated.",
)
@status_option("runs")
@selector_option("runs")
@label_columns_option
@limit_option("runs")
@table_options
def suite_runs_command(
    suites: tuple[str, ...],
    statuses: tuple[str, ...],
    selectors: tuple[str, ...],
    label_columns: list[str],
    limit: int,
    address: str | None,
    form: Form,
) -> None:
    """List suite runs, newest first: what `evalrpc suite` and the other commands take for a RUN.

    A run is listed if it meets all conditions. `evalrpc suite RUN` decides over it.
    """
    with connect(address) as client:
        page_size = min(limit and limit + 1, _LARGEST_PAGE)
        matching = client.list_suite_runs(suites, statuses_of(statuses), joined(selectors), page_size=page_size)
        runs = islice(matching, limit or None)
        print_items(form, _run_columns(label_columns), (_run_row(run, label_columns) for run in runs), runs)
        if next(matching, None) is not None:
            print_line("evalrpc: more runs match: --limit 0 shows all", err=True)


@click.command(short_help="Decide over suite runs: GO, NO_GO or INCONCLUSIVE.")
@run_argument("runs", "RUN...", nargs=-1, required=True)
@decision_options
def suite_command(runs: tuple[str, ...], baseline: str | None, address: str | None, display: Display) -> None:
    """Show suite runs as they stand, and decide over each: GO, NO_GO or INCONCLUSIVE.

    Exits with 1 unless all are GO.
    """
    with connect(address, SLOW_CALL_SECONDS) as client:
        display.show(decided(client, [resolve_run(client, text) for text in runs], baseline))


@click.command(short_help="Wait until suite runs have ended, and decide over them.")
@run_argument("runs", "RUN...", nargs=-1, required=True)
@click.option("--timeout", type=duration, metavar="DURATION", help="Wait no longer than this, then exit with 124.")
@reconnect_timeout_option
@decision_options
def wait_suite_command(
    runs: tuple[str, ...],
    timeout: timedelta | None,
    reconnect_timeout: timedelta,
    baseline: str | None,
    address: str | None,
    display: Display,
) -> None:
    """Wait until all jobs of these suite runs have ended, and decide over each run.

    Exits with 1 unless all are GO.
    """
    with connect(address, SLOW_CALL_SECONDS) as client:
        suite_run_ids = [resolve_run(client, text) for text in runs]
        wait_for_runs(client, suite_run_ids, timeout, reconnect_timeout)
        display.show(decided(client, suite_run_ids, baseline))


@click.command(short_help="Follow a suite run until it has ended, and decide over it.")
@run_argument()
@reconnect_timeout_option
@decision_options
def watch_suite_command(
    suite_run_id: str, reconnect_timeout: timedelta, baseline: str | None, address: str | None, display: Display
) -> None:
    """Follow the jobs of a suite run on stderr until all have ended, and decide over it.

    Exits with 1 unless it is GO.
    """
    with connect(address, SLOW_CALL_SECONDS) as client:
        suite_run_id = resolve_run(client, suite_run_id)
        watch_run(client, suite_run_id, reconnect_timeout)
        display.show(decided(client, [suite_run_id], baseline))


@click.command(short_help="Cancel all jobs of a suite run.")
@run_argument()
@click.option("--reason", default="", metavar="TEXT", help="Say why, for those who look later.")
@client_options
def cancel_suite_command(suite_run_id: str, reason: str, address: str | None, as_json: bool) -> None:
    """Cancel all jobs of a suite run that have not ended. Those that run are ended with all their processes, which takes a
    moment."""
    with connect(address) as client:
        run = client.cancel_suite_run(resolve_run(client, suite_run_id), reason)
    print_json(run) if as_json else print_line(f"{wording.status_name(run.status)}: {run.suite.name} of {model_name(run)}")


def _run_columns(label_columns: Sequence[str]) -> tuple[Column, ...]:
    return (
        Column("run", Kind.WHOLE),
        Column("status", Kind.WHOLE),
        *(Column(label, is_key=True) for label in label_columns),
        Column("suite"),
        Column("model"),
        Column("created", Kind.WHOLE),
        Column("labels"),
        Column("owner", only_wide=True),
        Column("baseline", Kind.WHOLE, only_wide=True),
    )


def _run_row(run: SuiteRun, label_columns: Sequence[str]) -> tuple[Cell, ...]:
    labels = run.submission.labels
    return (
        run.suite_run_id,
        wording.status_name(run.status),
        *(labels.get(label, "") for label in label_columns),
        run.suite.name,
        model_name(run),
        wording.time_text(run.created_at),
        wording.labels_text(labels),
        run.owner,
        run.submission.baseline_suite_run_id,
    )


def _rows(suite: Suite) -> Iterator[tuple[Cell, ...]]:
    for entry in suite.entries:
        request = entry.request
        yield (
            suite.name,
            entry.name,
            request.harness,
            entry.tier,
            "yes" if entry.required else "no",
            entry.threshold if entry.HasField("threshold") else None,
            entry.tolerance,
            ", ".join(map(selector_text, entry.metrics)) or "all",
            request.num_fewshot if request.HasField("num_fewshot") else None,
            request.limit if request.HasField("limit") else None,
            ", ".join(request.tasks),
            suite.description,
        )
