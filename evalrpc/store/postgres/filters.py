"""Jobs by a filter, newest first. PostgreSQL chooses by its statistics how it looks for them."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from psycopg import Connection

from evalrpc.jobs.filters import canonical_prefix
from evalrpc.jobs.label_selectors import Requirement, parse_selector
from evalrpc.store.postgres.texts import storable
from evalrpc.v1.jobs_pb2 import JobFilter

# As in the journal: the sizes are known before what is large is read.
_PAGE: Final = """
SELECT sequence, job FROM (
    SELECT sequence, job, sum(octet_length(job)) OVER (ORDER BY sequence DESC) - octet_length(job) AS size_before FROM (
        SELECT sequence, job FROM jobs{conditions} ORDER BY sequence DESC LIMIT %s
    ) AS newest
) AS sized WHERE size_before < %s ORDER BY sequence DESC
"""

INDEXED_CHARACTERS: Final = 250
"""How much of a long text is in its index, as the migrations make it."""

_Condition = tuple[str, Sequence[object]]


def find_jobs(
    connection: "Connection[Any]",
    job_filter: JobFilter,
    before_sequence: int | None,
    limit: int,
    max_bytes: int,
    owner: str | None = None,
) -> list[tuple[int, bytes]]:
    """Return the newest jobs that the filter takes, or those of one owner among them, each with its sequence: up to a number,
    and none after the one with which they have so many bytes."""
    conditions = list(_conditions(job_filter, before_sequence, owner))
    where = f" WHERE {' AND '.join(condition for condition, _ in conditions)}" if conditions else ""
    values = [value for _, of_condition in conditions for value in of_condition]
    return connection.execute(_PAGE.format(conditions=where), (*values, limit, max_bytes)).fetchall()


def _conditions(job_filter: JobFilter, before_sequence: int | None, owner: str | None) -> Iterator[_Condition]:
    if before_sequence is not None:
        yield "sequence < %s", (before_sequence,)
    if owner is not None:
        yield "owner = %s", (owner,)
    for column, values in (
        ("owner", job_filter.owners),
        ("suite_run_id", list(map(str.lower, job_filter.suite_run_ids))),
        ("harness", job_filter.harnesses),
    ):
        if values:
            yield f"{column} = ANY(%s)", (storable(values),)
    if job_filter.models:
        yield _among("model", storable(job_filter.models))
    if job_filter.statuses:
        yield "status = ANY(%s)", (list(job_filter.statuses),)
    if job_filter.tasks:
        row = "SELECT FROM job_tasks WHERE job_tasks.sequence = jobs.sequence AND task = ANY(%s)"
        yield f"EXISTS ({row})", (storable(job_filter.tasks),)
    for label, value in job_filter.labels.items():
        yield _label(Requirement(label, frozenset((value,))))
    for requirement in parse_selector(job_filter.label_selector):
        yield _label(requirement)
    if job_filter.HasField("created_after"):
        yield "created_ns >= %s", (job_filter.created_after.ToNanoseconds(),)
    if job_filter.HasField("created_before"):
        yield "created_ns < %s", (job_filter.created_before.ToNanoseconds(),)
    if job_filter.job_id_prefix:
        prefix = canonical_prefix(job_filter.job_id_prefix)
        yield "job_id >= %s AND job_id < %s", (prefix, f"{prefix}g")  # g: past all digits


def _label(requirement: Requirement) -> _Condition:
    row, values = "SELECT FROM job_labels WHERE job_labels.sequence = jobs.sequence AND label = ANY(%s)", requirement.values
    among, parameters = ("", ()) if values is None else _among("value", storable(values))
    has = f"EXISTS ({row}{among and f' AND {among}'})"
    return (f"NOT {has}" if requirement.negated else has), [storable([requirement.key]), *parameters]


def _among(column: str, values: Sequence[str]) -> _Condition:
    """Return the condition that a column has one of these values, so that an index of its first characters is used."""
    condition = f"left({column}, {INDEXED_CHARACTERS}) = ANY(%s) AND {column} = ANY(%s)"
    return condition, [[value[:INDEXED_CHARACTERS] for value in values], values]
