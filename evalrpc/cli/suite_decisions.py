"""How the commands about suite runs show decisions: in any form on stdout, and as reports in files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Final

import click
from google.protobuf import json_format

from evalrpc.cli import suite_reports
from evalrpc.cli.connection import TABLE_FORMS, address_option, named_form_options
from evalrpc.cli.exit_codes import ExitCode
from evalrpc.cli.output import Form, print_drawing, print_items, print_line, print_table
from evalrpc.cli.suite_runs import resolve_run
from evalrpc.cli.tables import Column
from evalrpc.client import EvalClient
from evalrpc.printable import printable_json
from evalrpc.v1.suites_pb2 import SuiteRun

_MARKDOWN: Final = "markdown"
_JUNIT: Final = "junit"
_FORMS: Final = (*TABLE_FORMS, _MARKDOWN, _JUNIT)
_FORM_HELP: Final = (
    "Print all columns uncut (wide), protobuf JSON (json), one line of it per run or finding (jsonl), CSV (csv), Markdown "
    "(markdown), or JUnit XML (junit)."
)
_MAX_REASONS: Final = 20

_TEXTS: Final = {_MARKDOWN: suite_reports.markdown, _JUNIT: suite_reports.junit}

_WRITERS: Final[dict[str, Callable[[Sequence[SuiteRun]], str]]] = {
    ".json": lambda runs: "".join(map(_json_line, runs)),
    ".md": suite_reports.markdown,
    ".xml": suite_reports.junit,
}
"""What is written into a report, by the end of its name."""


@dataclass(frozen=True)
class Display:
    """How a command shows decisions."""

    form: str
    reports: Sequence[Path]

    @property
    def is_json(self) -> bool:
        """Whether stdout has JSON, and nothing else."""
        return self.form in (Form.JSON, Form.JSONL)

    def show(self, runs: Sequence[SuiteRun]) -> None:
        """Show decisions, and on stderr what stands in the way. Exits with 1 unless all are GO."""
        for report in self.reports:
            report.write_text(_WRITERS[report.suffix](runs))
        if self.form in _TEXTS:
            print_drawing(_TEXTS[self.form](runs).rstrip())
        else:
            _print(runs, Form(self.form))
        blocked = [run for run in runs if not suite_reports.is_go(run)]
        for run in blocked:
            _print_reasons(run)
        if blocked:
            raise click.exceptions.Exit(ExitCode.NOT_PASSED)


def decision_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a command that decides over suite runs. It gets the baseline as `baseline`, and how to show decisions
    as `display`."""

    @wraps(function)
    def command(*, form: str, reports: tuple[Path, ...], **others: Any) -> None:
        function(display=Display(form, reports), **others)

    with_options: Callable[..., None] = address_option(named_form_options(_FORMS, _FORM_HELP)(command))
    for option in (
        click.option(
            "--report",
            "reports",
            multiple=True,
            type=click.Path(dir_okay=False, path_type=Path),
            callback=_known_reports,
            metavar="FILE",
            help="Also write the decision to this file: JUnit XML (.xml), Markdown (.md) or JSON (.json). May be repeated.",
        ),
        click.option("--baseline", metavar="RUN", help="Compare with this suite run. Default: as it was submitted."),
    ):
        with_options = option(with_options)
    return with_options


def decided(client: EvalClient, suite_run_ids: Sequence[str], baseline: str | None) -> list[SuiteRun]:
    """Return suite runs with the decisions over them."""
    baseline_id = resolve_run(client, baseline) if baseline else ""
    return [client.decide_suite_run(suite_run_id, baseline_id) for suite_run_id in suite_run_ids]


def _known_reports(context: click.Context, parameter: click.Parameter, reports: tuple[Path, ...]) -> tuple[Path, ...]:
    for report in reports:
        if report.suffix not in _WRITERS:
            raise click.BadParameter(f"{report.name!r} must end in {', '.join(_WRITERS)}", context, parameter)
    return reports


def _print_reasons(run: SuiteRun) -> None:
    """Say on stderr why a run is not GO."""
    print_line(f"evalrpc: {suite_reports.title(run)}", err=True)
    for reason in run.decision.reasons[:_MAX_REASONS]:
        print_line(f"  {reason}", err=True)
    if len(run.decision.reasons) > _MAX_REASONS:
        print_line("  and more", err=True)


def _print(runs: Sequence[SuiteRun], form: Form) -> None:
    """Print a row per run; of one alone also its findings, and of several models and suites their matrix first."""
    is_one = len(runs) == 1
    if form in (Form.JSON, Form.JSONL):
        print_items(form, (), (), runs[0].decision.findings if is_one else runs, runs[0] if is_one else None)
        return
    header, rows = suite_reports.matrix(runs)
    if form is not Form.CSV and len(header) > 2 and len(rows) > 1:
        print_table(form, [Column(name, is_key=True) for name in header], rows, suite_reports.STYLES)
        print_line()
    if not is_one or form is not Form.CSV:
        print_table(form, suite_reports.RUN_COLUMNS, map(suite_reports.run_row, runs), suite_reports.STYLES)
    if is_one:
        if form is not Form.CSV:
            print_line()
        print_table(form, suite_reports.FINDING_COLUMNS, suite_reports.finding_rows(runs[0]), suite_reports.STYLES)


def _json_line(run: SuiteRun) -> str:
    text = json_format.MessageToJson(run, preserving_proto_field_name=True, indent=None)
    return f"{printable_json(text)}\n"
