"""`evalrpc flips`: the samples that changed between two jobs, with both answers."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any, Final

import click

from evalrpc.cli.connection import SLOW_CALL_SECONDS, connect, table_options
from evalrpc.cli.job_ids import job_argument, resolve
from evalrpc.cli.output import Form, print_items, print_line, warn_of_cut_rows
from evalrpc.cli.tables import Cell, Column, Kind
from evalrpc.client.core import plain_row
from evalrpc.v1.comparison_pb2 import Flip, FlipDirection

_COLUMNS: Final = (
    Column("change", Kind.WHOLE),
    Column("sample"),
    Column("baseline", Kind.NUMBER),
    Column("candidate", Kind.NUMBER),
    Column("baseline answer"),
    Column("candidate answer"),
)
_STYLES: Final = {"BETTER": "green", "WORSE": "bold red"}
_DIRECTIONS: Final = {
    "worse": FlipDirection.FLIP_DIRECTION_WORSE,
    "better": FlipDirection.FLIP_DIRECTION_BETTER,
}
_ANSWERS: Final = ("resps", "filtered_resps", "answer")


@click.command(short_help="Print the samples that changed between two jobs.")
@job_argument("baseline_job_id", "BASELINE")
@job_argument("candidate_job_id", "CANDIDATE")
@click.option("--metric", default="", metavar="NAME", help="Print changes of this metric. Default: the only one.")
@click.option("--model", default="", metavar="NAME", help="Print those of this model of the baseline. Default: the only one.")
@click.option("--only", "direction", type=click.Choice(list(_DIRECTIONS)), help="Print only changes in this direction.")
@click.option(
    "--direction",
    "what_is_better",
    type=click.Choice(["higher", "lower"]),
    help="Say what is better; overrides the harness. Default: higher, where the harness does not say.",
)
@click.option("--limit", type=click.IntRange(0), default=0, metavar="N", help="Print at most this many. Default: all.")
@table_options
def flips_command(
    baseline_job_id: str,
    candidate_job_id: str,
    metric: str,
    model: str,
    direction: str | None,
    what_is_better: str | None,
    limit: int,
    address: str | None,
    form: Form,
) -> None:
    """Print the samples whose value changed between two jobs, with both answers: those for the worse first, and of these the
    largest changes.

    A NAME is TASK/METRIC, METRIC of any task, or TASK/ for the metric of a task, with an optional `,FILTER` suffix. With
    -o jsonl, both rows are printed as a whole.
    """
    with connect(address, SLOW_CALL_SECONDS) as client:
        flips = client.flips(
            resolve(client, baseline_job_id),
            resolve(client, candidate_job_id),
            metric,
            model,
            direction=_DIRECTIONS[direction] if direction else FlipDirection.FLIP_DIRECTION_UNSPECIFIED,
            higher_is_better=what_is_better == "higher" if what_is_better else None,
            page_size=min(limit, 1000),
            on_truncated=partial(warn_of_cut_rows, 1),
        )
        first = next(flips, None)
        printed = islice(flips if first is None else chain((first,), flips), limit or None)
        print_items(form, _COLUMNS, _rows(printed), printed, styles=_STYLES)
    if first is None:
        print_line("evalrpc: of the samples that both jobs have, if any, none changed: see evalrpc compare", err=True)


def _rows(flips: Iterable[Flip]) -> Iterator[tuple[Cell, ...]]:
    for flip in flips:
        known = flip.direction in FlipDirection.values()
        yield (
            FlipDirection.Name(flip.direction).removeprefix("FLIP_DIRECTION_") if known else f"{flip.direction:d}",
            flip.doc_id,
            flip.baseline_value,
            flip.candidate_value,
            _answer(plain_row(flip.baseline_sample)),
            _answer(plain_row(flip.candidate_sample)),
        )


def _answer(row: dict[str, Any]) -> str:
    """Return what the model said; empty if the row does not have it."""
    answer = next((row[name] for name in _ANSWERS if name in row), "")
    while isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    return answer if isinstance(answer, str) else str(answer)
