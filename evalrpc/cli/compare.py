"""`evalrpc compare`: for people, and for pipelines that continue only if nothing got worse."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

import click

from evalrpc.cli.connection import SLOW_CALL_SECONDS, client_options, connect
from evalrpc.cli.output import is_terminal, print_json, print_table
from evalrpc.v1.comparison_pb2 import CompareJobsResponse, MetricComparison, TestMethod, Verdict

SOMETHING_IS_WORSE: Final = 1

_IDS: Final = ("model", "job")
_STYLES: Final = {"BETTER": "green", "WORSE": "bold red", "INCONCLUSIVE": "yellow"}
_TESTS: Final = {
    TestMethod.TEST_METHOD_MCNEMAR: "McNemar",
    TestMethod.TEST_METHOD_PAIRED_BOOTSTRAP: "bootstrap",
    TestMethod.TEST_METHOD_UNPAIRED_Z: "z-test",
    TestMethod.TEST_METHOD_NONE: "none",
}

ValueT = TypeVar("ValueT")


@click.command()
@click.argument("baseline_job_id", metavar="BASELINE")
@click.argument("candidate_job_ids", metavar="CANDIDATE...", nargs=-1, required=True)
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Only TASK/METRIC or METRIC. May be repeated.")
@click.option("--tolerance", multiple=True, metavar="[NAME=]NUMBER", help="The largest difference that does not matter.")
@click.option("--alpha", type=float, help="The chance of a false alarm that you accept. Default: 0.05.")
@click.option("--direction", multiple=True, metavar="[NAME=]higher|lower", help="What is better, where the harness is silent.")
@click.option("--holm", is_flag=True, help="Keep the chance of any false alarm at all below alpha, over all metrics.")
@click.option("--strict", is_flag=True, help="Refuse if tasks, shots or documents differ between the jobs.")
@client_options
def compare_command(
    baseline_job_id: str,
    candidate_job_ids: tuple[str, ...],
    metrics: tuple[str, ...],
    tolerance: tuple[str, ...],
    alpha: float | None,
    direction: tuple[str, ...],
    holm: bool,
    strict: bool,
    address: str | None,
    as_json: bool,
) -> None:
    """Compare jobs with a baseline. Exits with 1 if any metric is WORSE.

    A NAME is TASK/METRIC, METRIC of any task, or TASK/ for all metrics of a task, with an optional `,FILTER` suffix.
    """
    general_tolerance, tolerances = _by_name(tolerance, _number)
    is_higher_better, directions = _by_name(direction, _is_higher)
    with connect(address, SLOW_CALL_SECONDS) as client:
        response = client.compare(
            baseline_job_id,
            candidate_job_ids,
            metrics=metrics,
            alpha=alpha,
            tolerance=general_tolerance,
            tolerances=tolerances,
            higher_is_better=is_higher_better,
            directions=directions,
            holm=holm,
            strict=strict,
        )
    verdicts = Counter(_verdict(metric) for candidate in response.candidates for metric in candidate.metrics)
    if as_json:
        print_json(response)
    else:
        _print(response)
        _warn_of_differences(response)
        click.echo(", ".join(f"{count} {name}" for name, count in sorted(verdicts.items())), err=True)
    if verdicts["WORSE"]:
        raise click.exceptions.Exit(SOMETHING_IS_WORSE)


def _warn_of_differences(response: CompareJobsResponse) -> None:
    """Say which tasks asked different questions in the two jobs."""
    found = {
        (candidate.candidate_job_id, metric.task): ", ".join(metric.definition_differences)
        for candidate in response.candidates
        for metric in candidate.metrics
        if metric.definition_differences
    }
    for (job_id, task), differences in found.items():
        click.echo(f"evalrpc: {task} is not the same in job {job_id}: {differences}", err=True)


def _by_name(texts: Sequence[str], read: Callable[[str], ValueT]) -> tuple[ValueT | None, dict[str, ValueT]]:
    """Parse repeated `VALUE` and `NAME=VALUE` texts into the last value without a name, and the named ones."""
    general, named = None, {}
    for text in texts:
        name, _, value = text.rpartition("=")
        if name:
            named[name] = read(value)
        else:
            general = read(value)
    return general, named


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no number, such as 0.01 or mme/score=5", param_hint="--tolerance") from error


def _is_higher(text: str) -> bool:
    if text not in ("higher", "lower"):
        raise click.BadParameter(f"{text!r} is neither `higher` nor `lower`", param_hint="--direction")
    return text == "higher"


def _print(response: CompareJobsResponse) -> None:
    """Print a table. On a terminal, it omits the model and the job if there is only one."""
    interval = f"{response.confidence_level:.4g} interval"
    columns = ("verdict", "metric", "baseline", "candidate", "difference", interval, "p", "test", "model", "job")
    rows = list(_rows(response))
    shown = [n for n, name in enumerate(columns) if not (is_terminal() and name in _IDS and len({row[n] for row in rows}) == 1)]
    print_table([columns[n] for n in shown], ([row[n] for n in shown] for row in rows), _STYLES)


def _rows(response: CompareJobsResponse) -> Iterator[tuple[str, ...]]:
    for candidate in response.candidates:
        for metric in candidate.metrics:
            yield (
                _verdict(metric),
                f"{metric.task}/{metric.metric}" + (f",{metric.filter}" if metric.filter else ""),
                *_numbers(metric),
                _test(metric),
                metric.candidate_model or metric.baseline_model,
                candidate.candidate_job_id,
            )


def _numbers(metric: MetricComparison) -> tuple[str, ...]:
    p_value = metric.adjusted_p_value if metric.HasField("adjusted_p_value") else metric.p_value
    return (
        f"{metric.baseline_value:.4f}" if metric.HasField("baseline_value") else "",
        f"{metric.candidate_value:.4f}" if metric.HasField("candidate_value") else "",
        f"{metric.difference:+.4f}" if metric.HasField("difference") else "",
        f"[{metric.interval_lower:+.4f}, {metric.interval_upper:+.4f}]" if metric.HasField("p_value") else "",
        f"{p_value:.2g}" if metric.HasField("p_value") else "",
    )


def _test(metric: MetricComparison) -> str:
    pairs = f"{metric.paired_sample_count} pairs" if metric.paired_sample_count else ""
    unpaired = f"{metric.unpaired_sample_count} unpaired" if metric.unpaired_sample_count else ""
    name = _TESTS.get(metric.method, f"method {metric.method:d}")
    return ", ".join(filter(None, (name, pairs, unpaired, metric.note)))


def _verdict(metric: MetricComparison) -> str:
    known = metric.verdict in Verdict.values()
    return Verdict.Name(metric.verdict).removeprefix("VERDICT_") if known else f"VERDICT_{metric.verdict:d}"
