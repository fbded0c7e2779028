"""A JobFilter as a condition of SQL."""

from evalrpc.v1.evaluation_service_pb2 import JobFilter


def where_clause(job_filter: JobFilter, before_sequence: int | None) -> tuple[str, list[str | int]]:
    """Return a condition on the table `jobs` and its parameters."""
    conditions: list[str] = []
    parameters: list[str | int] = []

    def add(condition: str, *values: str | int) -> None:
        conditions.append(condition)
        parameters.extend(values)

    if before_sequence is not None:
        add("sequence < ?", before_sequence)
    for column, wanted in (
        ("status", job_filter.statuses),
        ("model", job_filter.models),
        ("harness", job_filter.harnesses),
    ):
        if wanted:
            add(f"{column} IN ({_marks(len(wanted))})", *wanted)
    if job_filter.tasks:
        tasks = f"SELECT sequence FROM job_tasks WHERE task IN ({_marks(len(job_filter.tasks))})"  # noqa: S608
        add(f"sequence IN ({tasks})", *job_filter.tasks)
    for label, value in job_filter.labels.items():
        add("sequence IN (SELECT sequence FROM job_labels WHERE label = ? AND value = ?)", label, value)
    if job_filter.HasField("created_after"):
        add("created_ns >= ?", job_filter.created_after.ToNanoseconds())
    if job_filter.HasField("created_before"):
        add("created_ns < ?", job_filter.created_before.ToNanoseconds())
    return " AND ".join(conditions) or "TRUE", parameters


def _marks(count: int) -> str:
    return ", ".join("?" * count)
