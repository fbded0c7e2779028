"""`evalrpc plan`: what it takes to see a difference, before anything is run."""

from collections.abc import Iterator
from typing import Final

import click

from evalrpc.cli.connection import SLOW_CALL_SECONDS, connect, table_options
from evalrpc.cli.job_ids import job_argument, resolve
from evalrpc.cli.output import Form, print_items
from evalrpc.cli.tables import Cell, Column, Kind
from evalrpc.client.arguments import metric_text
from evalrpc.v1.comparison_pb2 import PlanComparisonResponse

_COLUMNS: Final = (
    Column("metric", optional=True),
    Column("samples needed", Kind.NUMBER),
    Column("note"),
    Column("tasks", Kind.NUMBER),
    Column("repeats", Kind.NUMBER),
    Column("samples now", Kind.NUMBER),
    Column("detectable now", Kind.NUMBER),
    Column("design effect", Kind.NUMBER, ".2f", optional=True),
    Column("model", optional=True),
)
_NUMBERS: Final = (
    *("required_sample_count", "required_task_count", "required_repeats", "sample_count"),
    *("detectable_difference", "design_effect"),
)


@click.command(short_help="Say how many samples a difference takes.")
@click.argument("difference", type=float)
@job_argument("job_ids", "[JOB [JOB]]", nargs=-1)
@click.option(
    "--differing",
    "differing_ratio",
    type=float,
    metavar="SHARE",
    help="Plan for this share of samples that differ, without a JOB.",
)
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Plan for this metric only. May be repeated.")
@click.option("--alpha", type=float, metavar="NUMBER", help="Accept this chance of a false alarm. Default: 0.05.")
@click.option("--power", type=float, metavar="NUMBER", help="See the difference with this probability. Default: 0.8.")
@click.option("--cluster-by", default="", metavar="FIELD", help="Take samples with the same value of this field for dependent.")
@table_options
def plan_command(
    difference: float,
    job_ids: tuple[str, ...],
    differing_ratio: float | None,
    metrics: tuple[str, ...],
    alpha: float | None,
    power: float | None,
    cluster_by: str,
    address: str | None,
    form: Form,
) -> None:
    """Say how many samples, tasks like this one, or repeats of the same samples it takes to see a DIFFERENCE.

    DIFFERENCE is in the metric's own unit: 0.01 is a point of an accuracy from 0 to 1. How much samples differ is taken from
    two earlier jobs; from one, which asks for more than is usually needed; or from --differing, where each is right or wrong.

    \b
      evalrpc plan 0.01 --differing 0.1
      evalrpc plan 0.01 @baseline:main @latest:run=x --metric gsm8k/
    """
    if len(job_ids) > 2:
        raise click.UsageError("give at most two JOBs")
    if not job_ids and differing_ratio is None:
        raise click.UsageError("how much samples differ is not known: give a JOB or two, or --differing")
    with connect(address, SLOW_CALL_SECONDS) as client:
        baseline_id, candidate_id = ([resolve(client, text) for text in job_ids] + ["", ""])[:2]
        response = client.plan_comparison(
            difference,
            differing_ratio=differing_ratio,
            baseline_job_id=baseline_id,
            candidate_job_id=candidate_id,
            metrics=metrics,
            alpha=alpha,
            power=power,
            cluster_by=cluster_by,
        )
    print_items(form, _COLUMNS, _rows(response), response.metrics, response)


def _rows(response: PlanComparisonResponse) -> Iterator[tuple[Cell, ...]]:
    for plan in response.metrics:
        needed, *numbers = (getattr(plan, name) if plan.HasField(name) else None for name in _NUMBERS)
        yield (metric_text(plan) if plan.metric else "", needed, plan.note, *numbers, plan.model)
