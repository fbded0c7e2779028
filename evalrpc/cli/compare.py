"""`evalrpc compare`: for people, and for pipelines that continue only if nothing got worse."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

import click

from evalrpc.cli import gates
from evalrpc.cli.comparison_cells import comparison_numbers, test_words
from evalrpc.cli.connection import SLOW_CALL_SECONDS, connect, table_options
from evalrpc.cli.exit_codes import ExitCode, fail
from evalrpc.cli.gates import DEFAULT_GATE, GATES
from evalrpc.cli.job_ids import job_argument, resolve
from evalrpc.cli.output import Form, print_items, print_line
from evalrpc.cli.parameters import once_each
from evalrpc.cli.tables import Cell, Column, Kind
from evalrpc.client.arguments import metric_text
from evalrpc.v1.comparison_pb2 import CompareJobsResponse, JobComparison

_STYLES: Final = {"BETTER": "green", "WORSE": "bold red", "INCONCLUSIVE": "yellow", "VOID": "bold red"}
_MAX_FAILURES: Final = 20
_MAX_UNTESTED: Final = 5
ValueT = TypeVar("ValueT")


@click.command(short_help="Compare jobs with a baseline, as a gate for pipelines.")
@job_argument("baseline_job_id", "BASELINE")
@job_argument("candidate_job_ids", "CANDIDATE...", nargs=-1, required=True)
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Compare only this metric. May be repeated.")
@click.option("--tolerance", multiple=True, metavar="[NAME=]NUMBER", help="Ignore differences that are not larger. Default: 0.")
@click.option("--alpha", type=float, metavar="NUMBER", help="Accept this chance of a false alarm. Default: 0.05.")
@click.option(
    "--direction", multiple=True, metavar="[NAME=]higher|lower", help="Say what is better, where the harness does not."
)
@click.option("--holm", is_flag=True, help="Keep the chance of any false alarm at all below alpha, over all metrics.")
@click.option("--cluster-by", default="", metavar="FIELD", help="Take samples with the same value of this field for dependent.")
@click.option(
    "--max-bad-answers",
    "max_bad_answer_ratio",
    type=float,
    metavar="SHARE",
    help="Call metrics VOID where more answers are truncated, empty or failed. Default: 0.02.",
)
@click.option("--strict", is_flag=True, help="Refuse if tasks, shots or documents differ between the jobs.")
@click.option(
    "--gate",
    metavar="GATE",
    type=click.Choice(list(GATES)),
    default=DEFAULT_GATE,
    help="Exit with 1 unless all metrics pass this gate.",
)
@click.option(
    "--allow-missing", is_flag=True, help="Leave metrics out of the gate that a job lacks or for which it has no number."
)
@table_options
def compare_command(
    baseline_job_id: str,
    candidate_job_ids: tuple[str, ...],
    metrics: tuple[str, ...],
    tolerance: tuple[str, ...],
    alpha: float | None,
    direction: tuple[str, ...],
    holm: bool,
    cluster_by: str,
    max_bad_answer_ratio: float | None,
    strict: bool,
    gate: str,
    allow_missing: bool,
    address: str | None,
    form: Form,
) -> None:
    """Compare jobs with a baseline. Exits with 1 if the metrics do not pass the gate.

    A NAME is TASK/METRIC, METRIC of any task, or TASK/ for all metrics of a task, with an optional `,FILTER` suffix.

    A GATE is what each metric has to be:

    \b
      no-significant-drop  anything but WORSE; this is the default
      no-worse             BETTER, SAME or NOT_WORSE
      better               BETTER

    A metric that is missing or NaN fails every gate, unless --allow-missing is given. One that is VOID always does, and so do
    a comparison without metrics, and a significant difference where neither the harness nor --direction says what is better.
    """
    general_tolerance, tolerances = _by_name(tolerance, _number)
    is_higher_better, directions = _by_name(direction, _is_higher)
    with connect(address, SLOW_CALL_SECONDS) as client:
        response = client.compare(
            resolve(client, baseline_job_id),
            [resolve(client, text) for text in candidate_job_ids],
            metrics=metrics,
            alpha=alpha,
            tolerance=general_tolerance,
            tolerances=tolerances,
            higher_is_better=is_higher_better,
            directions=directions,
            holm=holm,
            strict=strict,
            cluster_by=cluster_by,
            max_bad_answer_ratio=max_bad_answer_ratio,
        )
    print_items(form, _columns(response), _rows(response), _items(response), response, _STYLES)
    _warn_of_differences(response)
    _pass_gate(response, gate, allow_missing=allow_missing)


def _pass_gate(response: CompareJobsResponse, gate: str, *, allow_missing: bool) -> None:
    """Say on stderr how it went. Exits with 1 if the gate does not pass."""
    verdicts = Counter(gates.verdict_name(metric) for candidate in response.candidates for metric in candidate.metrics)
    if verdicts:
        print_line(", ".join(f"{count} {name}" for name, count in sorted(verdicts.items())), err=True)
    if untested := list(gates.untested(response)):
        others = f" and {len(untested) - _MAX_UNTESTED} more" if len(untested) > _MAX_UNTESTED else ""
        named = ", ".join(untested[:_MAX_UNTESTED])
        print_line(f"evalrpc: not tested, for want of samples or standard errors: {named}{others}", err=True)
    failures = list(gates.failures(response, gate, allow_missing=allow_missing))
    if failures:
        shown = [f"  {failure}" for failure in failures[:_MAX_FAILURES]]
        more = len(failures) - len(shown)
        fail(ExitCode.NOT_PASSED, f"the gate {gate} does not pass:", *shown, *([f"  and {more} more"] if more else []))


def _warn_of_differences(response: CompareJobsResponse) -> None:
    """Say which tasks asked different questions in the two jobs."""
    found = {
        (candidate.candidate_job_id, metric.task): ", ".join(metric.definition_differences)
        for candidate in response.candidates
        for metric in candidate.metrics
        if metric.definition_differences
    }
    for (job_id, task), differences in found.items():
        print_line(f"evalrpc: {task} is not the same in job {job_id}: {differences}", err=True)


def _by_name(texts: Sequence[str], read: Callable[[str], ValueT]) -> tuple[ValueT | None, dict[str, ValueT]]:
    """Parse repeated `VALUE` and `NAME=VALUE` texts into the value without a name, and the named ones. Raises click.UsageError
    for several of one name."""
    pairs = (text.rpartition("=") for text in texts)
    try:
        named = once_each((name, read(value)) for name, _, value in pairs)
    except ValueError as error:
        raise click.UsageError(f"{' '.join(texts)}: {error}") from error
    return named.pop("", None), named


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no number, such as 0.01 or mme/score=5", param_hint="--tolerance") from error


def _is_higher(text: str) -> bool:
    if text not in ("higher", "lower"):
        raise click.BadParameter(f"{text!r} is neither `higher` nor `lower`", param_hint="--direction")
    return text == "higher"


def _columns(response: CompareJobsResponse) -> tuple[Column, ...]:
    return (
        Column("verdict", Kind.WHOLE),
        Column("metric"),
        Column("baseline", Kind.NUMBER),
        Column("candidate", Kind.NUMBER),
        Column("difference", Kind.NUMBER, "+.4f"),
        Column(f"{response.confidence_level * 100:.4g}% interval", Kind.WHOLE),
        Column("p", Kind.NUMBER, ".2g"),
        Column("detectable", Kind.NUMBER),
        Column("test"),
        Column("model", optional=True),
        Column("job", Kind.WHOLE, optional=True),
    )


def _rows(response: CompareJobsResponse) -> Iterator[tuple[Cell, ...]]:
    for item in _items(response):
        metric = item.metrics[0]
        yield (
            gates.verdict_name(metric),
            metric_text(metric),
            *comparison_numbers(metric),
            test_words(metric),
            metric.candidate_model or metric.baseline_model,
            item.candidate_job_id,
        )


def _items(response: CompareJobsResponse) -> Iterator[JobComparison]:
    """Yield each metric with its candidate, as a comparison of this metric alone."""
    for candidate in response.candidates:
        for metric in candidate.metrics:
            yield JobComparison(candidate_job_id=candidate.candidate_job_id, metrics=[metric])
