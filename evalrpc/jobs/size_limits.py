"""How large the parts of a job may be, so that every answer fits into the 4 MiB that a client with gRPC's defaults accepts.

A JobInfo has at most MAX_JOB_BYTES:

    model_args, gen_kwargs,
    task_args                       3 * MAX_ARGS_BYTES                     1536 KiB
    args of two served models       2 * MAX_SERVED_ARGS_BYTES               128 KiB
    tasks, other fields             MAX_TASK_NAMES_BYTES and 24 KiB         144 KiB
    results                         what `results_room` leaves            >= 880 KiB
        metrics                     at most MAX_METRICS_BYTES; beside the largest request 384 KiB
        paths, versions, extras     at most MAX_PATHS_BYTES
        tasks                       at most MAX_TASK_RESULTS_BYTES, at least RESERVED_TASK_RESULTS_BYTES
    all else                        RESERVED_BYTES                          384 KiB

All else is: labels (70 KiB), warnings (33 KiB), an error with its log tail (19 KiB), ten attempts that count (7 KiB each, and
the ids of their GPUs and spans), 40 that were preempted (4.3 KiB each, since their errors are short), the reason of a cancel,
the progress, and what wraps a job in an event.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

MAX_PAGE_BYTES: Final = 3 * MIB
"""The size of an answer that is a page of something."""

MAX_JOB_BYTES: Final = 3 * MIB
MAX_ARGS_BYTES: Final = 512 * KIB
"""The size of `model_args`, that of `gen_kwargs` and that of `task_args`."""
MAX_SERVED_ARGS_BYTES: Final = 64 * KIB
"""The size of the arguments of a served model, each of which is on a command line. ListEngines has those of all engines."""
MAX_TASK_NAMES_BYTES: Final = 120 * KIB
"""The size of all task names of a request together. With commas between them they are one argument of a program, which Linux
takes up to 128 KiB."""
MAX_WARNINGS: Final = 32
MAX_WARNING_BYTES: Final = 1 * KIB
RESERVED_BYTES: Final = 384 * KIB

MAX_SUITE_BYTES: Final = 256 * KIB
"""The size of a suite's definition."""
MAX_SUBMIT_SUITE_BYTES: Final = 1 * MIB
"""The size of a SubmitSuiteRequest, which its run repeats."""
MAX_FINDINGS_BYTES: Final = 3 * MIB // 2
"""The size of the findings of a decision. So a suite run with all of this is at most MAX_PAGE_BYTES."""

MAX_METRICS_BYTES: Final = 1 * MIB
MAX_TASK_RESULTS_BYTES: Final = 1 * MIB
RESERVED_TASK_RESULTS_BYTES: Final = 48 * KIB
"""What metrics leave to tasks, whatever the request."""
MAX_PATHS_BYTES: Final = 448 * KIB
"""The size of a job's results without metrics and tasks."""


def results_room(request_bytes: int) -> int:
    """Return the size that the results of a job with a request of this size may have."""
    return MAX_JOB_BYTES - RESERVED_BYTES - request_bytes
