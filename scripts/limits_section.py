"""The sections of docs/settings.md about limits: their values are those of the code, so that neither can change alone."""

from collections.abc import Iterator

from evalrpc.analysis import comparer, decisions, flips, history, run_series, sample_values, suite_metrics
from evalrpc.files import fingerprints
from evalrpc.files.opening import MAX_NAME_BYTES as MAX_FILE_NAME_BYTES
from evalrpc.harnesses import sample_answers
from evalrpc.harnesses.inspect_ai import json_stream, task_arguments
from evalrpc.jobs import filters, label_selectors, size_limits, transitions
from evalrpc.protobuf import structs, texts
from evalrpc.reading import artifacts, document_media, metrics, sample_files, sample_pages, sample_references, samples
from evalrpc.results import layout
from evalrpc.results import metrics as extras
from evalrpc.scheduling import limited_process
from evalrpc.server import handlers, limits, queue_listing, reflection, secret_use, served_use, service, threads, unread
from evalrpc.server.transports import grpc_options
from evalrpc.server.transports.http import application, codec, connection, request
from evalrpc.server.validation import arguments, comparisons, evaluations, fields, jobs
from evalrpc.server.validation import samples as sample_checks

_KIB, _MIB, _GIB = 1024, 1024**2, 1024**3

_INVALID = "INVALID_ARGUMENT, `INVALID_REQUEST`, field"
_EXHAUSTED = "RESOURCE_EXHAUSTED,"
_TOO_MUCH = "FAILED_PRECONDITION, `READ_LIMIT_REACHED`"
_FAILED = "the job is FAILED with"

HEAD = """\
## Limits, and what is past them

Every error has its reason in the ErrorInfo; INVALID_ARGUMENT names every bad field in the BadRequest, with the limit in its
text. Names in this font are settings (above), or fields of requests. What has no setting can't be changed.
"""


def section() -> str:
    """Return all sections."""
    tables = [
        ("## Limits of calls", "past it, a caller gets", calls()),
        ("## Limits of requests", "past it, a caller gets", requests()),
        ("## Limits of answers, and of what is read for them", "past it", answers()),
        ("## Limits of runs", "past it", runs()),
    ]
    parts = [
        f"{title}\n\n| limit | value | {past} |\n|---|---|---|\n" + "\n".join(map(row, rows)) for title, past, rows in tables
    ]
    return "\n\n".join([HEAD.rstrip(), *parts])


def row(cells: tuple[str, str, str]) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(cells)} |"


def calls() -> Iterator[tuple[str, str, str]]:
    """Yield what holds for every call."""
    yield (
        "size of a request",
        "`max_request_bytes`",
        f"{_EXHAUSTED} `REQUEST_TOO_LARGE`, or gRPC's own error without a reason",
    )
    yield (
        "fields of a request, with those of all messages in it",
        f"{handlers.MAX_FIELDS:,}",
        f"{_EXHAUSTED} `REQUEST_TOO_LARGE`",
    )
    yield ("jobs that wait", "`max_queued`", f"{_EXHAUSTED} `QUEUE_FULL`, with RetryInfo")
    yield ("jobs of an owner that wait", "`quotas.OWNER.max_queued`", f"{_EXHAUSTED} `QUOTA_EXCEEDED`, with RetryInfo")
    yield ("bytes that an owner keeps", "`quotas.OWNER.max_bytes`", f"{_EXHAUSTED} `QUOTA_EXCEEDED`, with RetryInfo")
    yield ("open streams", "`max_streams`", f"{_EXHAUSTED} `TOO_MANY_STREAMS`, with RetryInfo")
    yield ("open streams of an owner", "`max_streams_per_owner`", f"{_EXHAUSTED} `TOO_MANY_STREAMS`, with RetryInfo")
    yield ("calls per second of an owner", "`max_calls_per_second`", f"{_EXHAUSTED} `TOO_MANY_CALLS`, with RetryInfo")
    yield ("calls on a connection", "`max_streams_per_connection`", "a wait in the client")
    waiting = f"{grpc_options.MAX_PENDING_CALLS:,}"
    yield ("calls that wait until the server takes them", waiting, "CANCELLED by gRPC, without a reason")
    yield ("connections", "`max_connections`", "a closed connection: UNAVAILABLE without a reason")
    yield (
        "time without a call, and age of a connection",
        "`max_connection_idle_seconds`, `max_connection_age_seconds`",
        "a closed connection; calls in progress have a minute, and our streams resume",
    )
    yield (
        f"unread answers over {size(limits.SMALL_BYTES)}",
        "`max_unread_bytes`",
        f"a wait, or {_EXHAUSTED} `TOO_MUCH_UNREAD`",
    )
    yield (
        "media without a file, of all samples that are being read",
        size(service.MAX_INLINE_MEDIA_BYTES),
        "a wait",
    )
    yield ("a question to reflection", size(reflection.MAX_REQUEST_BYTES), "INVALID_ARGUMENT, `INVALID_REQUEST`")
    yield ("a request as JSON, over HTTP", size(codec.MAX_JSON_BYTES), f"{_EXHAUSTED} `REQUEST_TOO_LARGE`")
    yield ("bodies of HTTP requests, all together", size(application.MAX_BODIES_BYTES), "a wait, or a closed connection")
    yield (
        "values, or commas and brackets, of such a request",
        f"{codec.MAX_JSON_VALUES:,}",
        f"{_EXHAUSTED} `REQUEST_TOO_LARGE`",
    )
    yield ("what is before the body of an HTTP request", size(connection.MAX_HEAD_BYTES), "status 431 and a closed connection")
    yield ("what is after it, or between its parts", size(connection.MAX_HEAD_BYTES), "a closed connection")
    yield ("HTTP requests that wait for the answer to one before", f"{connection.MAX_PIPELINED}", "a closed connection")
    yield ("parameters of an HTTP request", f"{request.MAX_PARAMETERS:,}", "INVALID_ARGUMENT, `INVALID_REQUEST`")
    yield ("comparisons at a time, of all callers", f"{threads.MAX_COMPARISONS}", "a wait for its turn")
    long_work = f"of these, that read more than {size(comparer.QUICK_BYTES)} or take longer than {comparer.QUICK_SECONDS:g} s"
    yield (long_work, f"{threads.MAX_LONG_COMPARISONS}", "a wait for its turn")
    yield ("pages of samples with a filter or large rows, at a time", f"{threads.MAX_PARSERS}", "a wait for its turn")
    yield ("time without taking anything of an answer, while others wait", f"{unread.STALL_SECONDS:g} s", "a closed connection")


def requests() -> Iterator[tuple[str, str, str]]:
    """Yield how large the fields of requests may be."""
    yield from (
        (what, value, f"{_INVALID} {field}")
        for what, value, field in (
            ("`model`", characters(evaluations.MAX_MODEL_LENGTH), "`model`"),
            ("number of `tasks`", f"{evaluations.MAX_TASKS:,}", "`tasks`"),
            ("all names of `tasks` together", size(size_limits.MAX_TASK_NAMES_BYTES), "`tasks`"),
            ("name of a task, value of a label, names in a selector", characters(texts.MAX_NAME_LENGTH), "its own"),
            (
                "`model_args`, `gen_kwargs`, and `task_args`",
                size(size_limits.MAX_ARGS_BYTES),
                "`model_args`, `gen_kwargs` or `task_args`",
            ),
            ("values in all of these together", f"{arguments.MAX_ARG_VALUES:,}", "`model_args`, `gen_kwargs` or `task_args`"),
            ("depth of any of these", f"{arguments.MAX_NESTING}", "`model_args`, `gen_kwargs` or `task_args`"),
            ("`epochs` in `task_args`, of inspect-ai", f"1 to {task_arguments.MAX_EPOCHS:,}", "`task_args.epochs`"),
            ("`output_dir`", f"{evaluations.MAX_OUTPUT_DIR_BYTES:,} bytes", "`output_dir`"),
            ("number of `labels`", f"{fields.MAX_LABELS}", "`labels`"),
            ("key of a label", characters(label_selectors.MAX_KEY_LENGTH), "`labels`"),
            ("`request_id`", "128 characters", "`request_id`"),
            ("`supersede_key`", characters(texts.MAX_NAME_LENGTH), "`supersede_key`"),
            ("number of `secrets`", f"{secret_use.MAX_SECRETS}", "`secrets`"),
            ("`max_bad_answer_ratio`", "0 to 1", "`max_bad_answer_ratio`"),
            ("`model` of a served model", f"{served_use.MAX_MODEL_BYTES:,} bytes", "`served_model.model`"),
            ("`args` of a served model", size(size_limits.MAX_SERVED_ARGS_BYTES), "`served_model.args`"),
            ("`max_replicas` of a served model", f"1 to {served_use.MAX_REPLICAS}", "`served_model.max_replicas`"),
            ("`max_attempts`", f"{jobs.MAX_ATTEMPTS}", "`max_attempts`"),
            ("`priority`", f"-{jobs.MAX_PRIORITY:,} to {jobs.MAX_PRIORITY:,}", "`priority`"),
            ("`timeout`", f"{fields.MAX_TIMEOUT_SECONDS // 86400:g} days", "`timeout`"),
            ("`reason` of a cancel", characters(fields.MAX_REASON_LENGTH), "`reason`"),
            ("models, tasks, harnesses or owners in a filter", f"{fields.MAX_FILTER_VALUES:,}", "such as `filter.models`"),
            ("statuses in a filter", f"{fields.MAX_STATUSES}", "`filter.statuses`"),
            ("ids of samples in a filter", f"{sample_checks.MAX_SAMPLE_IDS:,}", "`filter.sample_ids`"),
            (
                "text, metric or id in a filter of samples",
                characters(sample_checks.MAX_TEXT_LENGTH),
                "such as `filter.text`",
            ),
            ("`job_id_prefix`", f"at least {filters.MIN_PREFIX_LENGTH} characters", "`filter.job_id_prefix`"),
            ("`label_selector`", characters(label_selectors.MAX_CHARACTERS), "`filter.label_selector`"),
            ("requirements in it", f"{label_selectors.MAX_REQUIREMENTS}", "`filter.label_selector`"),
            ("candidates of a comparison", f"{comparisons.MAX_CANDIDATES}", "`candidate_job_ids`"),
            ("selectors of metrics, and thresholds", f"{fields.MAX_SELECTORS} each", "`metrics`, `metric_thresholds`"),
            ("`alpha`", f"{comparisons.MIN_ALPHA} to {comparisons.MAX_ALPHA}", "`alpha`"),
            ("`cluster_by`", characters(texts.MAX_NAME_LENGTH), "`cluster_by`"),
            (
                "`difference` of a plan",
                f"{comparisons.MIN_DIFFERENCE:g} to {comparisons.MAX_DIFFERENCE:g}",
                "`difference`",
            ),
            ("`power` of a plan", f"{comparisons.MIN_POWER} to {comparisons.MAX_POWER}", "`power`"),
            ("`update_mask`", f"{jobs.MAX_PATHS} paths", "`update_mask`"),
            ("a SubmitSuiteRequest", size(size_limits.MAX_SUBMIT_SUITE_BYTES), "`request`"),
            ("suite runs in a filter", f"{fields.MAX_FILTER_VALUES:,}", "`filter.suite_run_ids`"),
            ("`heartbeat_interval`", f"at least {fields.MIN_HEARTBEAT_SECONDS} s", "`heartbeat_interval`"),
        )
    )


def answers() -> Iterator[tuple[str, str, str]]:
    """Yield how large answers may be, and how much is read for one."""
    yield (
        "entries of a page",
        f"{service.MAX_PAGE_SIZE:,}; ListMetrics {service.MAX_METRICS_SIZE:,}",
        "that many, and a token",
    )
    yield (
        "size of a page, and of a CompareJobs answer",
        size(size_limits.MAX_PAGE_BYTES),
        "a shorter page; CompareJobs: an error",
    )
    yield ("a JobInfo", size(size_limits.MAX_JOB_BYTES), "fewer metrics, tasks and warnings")
    yield ("paths of files in a JobInfo", size(size_limits.MAX_PATHS_BYTES), "fewer paths; ListArtifacts has all")
    waiting, running = queue_listing.MAX_QUEUED_IDS, queue_listing.MAX_RUNNING_IDS
    owners = queue_listing.MAX_OWNERS
    yield (
        "jobs and owners in GetQueue",
        f"{waiting:,} that wait, {running:,} that run, {owners:,} owners",
        "the first ones; all are counted",
    )
    yield ("suite runs that a page is chosen from", f"{service.MAX_RUNS_LOOKED_AT:,}", "a shorter page, and a token")
    yield (
        "depth of a sample, and of `extra`",
        f"{structs.MAX_SAMPLE_DEPTH}, and {structs.MAX_DEPTH}",
        "text in place of what is deeper",
    )
    yield (
        "`extra` of a result, of one entry in it, of a task",
        ", ".join(map(size, (extras.MAX_EXTRA_BYTES, extras.MAX_EXTRA_ENTRY_BYTES, extras.MAX_TASK_EXTRA_BYTES))),
        "entries are left out; the results file has them",
    )
    yield ("metrics in a JobInfo", size(size_limits.MAX_METRICS_BYTES), "`metrics_truncated`; ListMetrics has all")
    yield ("tasks in a JobInfo", size(size_limits.MAX_TASK_RESULTS_BYTES), "fewer tasks; ListMetrics has the metrics of all")
    yield (
        "attempts in a JobInfo",
        f"the first and the last {transitions.KEPT_ATTEMPTS}",
        "preempted ones in between are left out; `attempt_count` counts all",
    )
    yield ("points of a page of GetHistory", f"{history.MAX_POINTS:,}, {seconds(history.LIMITS)}", f"a token; {_TOO_MUCH}")
    yield (
        "trends of GetHistory",
        f"{run_series.MAX_SERIES:,}, of {run_series.MAX_POINTS:,} points each",
        "INVALID_ARGUMENT: select fewer",
    )
    yield ("a page of ListMetrics", seconds(metrics.LIMITS), "a shorter page")
    yield ("name of an artifact", f"{MAX_FILE_NAME_BYTES:,} bytes", "it is not listed")
    yield ("a page of ListArtifacts", seconds(artifacts.LISTING_LIMITS), _TOO_MUCH)
    yield (
        "checksums of a page",
        f"{reading(artifacts.CHECKSUM_LIMITS)}",
        "a shorter page; a file that takes more alone has none",
    )
    yield (
        "a row of ListSamples",
        f"{size(sample_pages.MAX_ROW_BYTES)}, {sample_pages.MAX_ROW_VALUES:,} values",
        "`truncated_fields`",
    )
    yield ("a line of samples", size(sample_files.MAX_LINE_BYTES), "an empty row, named in `truncated_fields`")
    yield ("a page of ListSamples", process(samples.PROCESS_LIMITS, samples.PROCESS_USE), f"a shorter page; {_TOO_MUCH}")
    media = document_media.LIMITS
    yield ("media of a sample", f"{sample_references.MAX_REFERENCES:,}", "the others are left out")
    yield (
        "a `data:` URL of a sample, and all of one sample",
        f"{size(sample_references.MAX_INLINE_BYTES)}, {size(sample_references.MAX_ALL_INLINE_BYTES)}",
        "ReadSampleMedia says so in `problem`",
    )
    yield (
        "a medium of a document that a harness shows",
        f"{size(media.max_bytes)}, {media.processor_seconds} s of a processor, {size(media.memory_bytes)} of memory",
        "a large image is made smaller; else `problem`",
    )
    yield (
        "a comparison, a plan, the first page of ListFlips",
        process(comparer.READ_LIMITS, comparer.PROCESS_USE),
        _TOO_MUCH,
    )
    yield (
        "each entry of a decision",
        f"{process(comparer.READ_LIMITS, comparer.PROCESS_USE)}, {suite_metrics.MAX_METRICS:,} metrics",
        "NO_NUMBERS for that entry",
    )
    yield (
        "reasons of a finding",
        f"{decisions.MAX_REASONS}, {size(decisions.MAX_REASON_BYTES)} each",
        "the first ones",
    )
    yield ("findings of a decision", size(size_limits.MAX_FINDINGS_BYTES), "the last are left out; all count")
    yield ("flips in each direction", f"{flips.MAX_LISTED:,}", "only the largest ones are listed; all are counted")
    yield ("each of the two rows of a flip", f"{size(flips.MAX_ROW_BYTES)}", "`truncated_fields`")
    yield ("`doc_id` of a flip", f"{size(flips.MAX_DOC_ID_BYTES)}", "`truncated_fields`")
    yield (
        "values of samples in a comparison",
        f"{sample_values.MAX_VALUES:,}",
        "only the first ones are compared",
    )


def runs() -> Iterator[tuple[str, str, str]]:
    """Yield what a run may leave and take."""
    use = limited_process.Limits()
    yield ("log", "`max_log_bytes`", f"{_FAILED} `LOG_TOO_LARGE`")
    yield ("output folder", "`max_output_bytes`", f"{_FAILED} `OUTPUT_TOO_LARGE`")
    yield ("memory", "`max_run_memory_bytes`", f"{_FAILED} `OUT_OF_MEMORY`")
    yield ("processes and threads", "`max_run_processes`", "it can't start more")
    yield ("time of an attempt", "`timeout` of the request", f"{_FAILED} `TIMED_OUT`")
    yield ("results file", size(layout.MAX_RESULTS_BYTES), f"{_FAILED} `RESULTS_INVALID`")
    yield ("reading the results", f"{size(use.memory_bytes)}, {use.processor_seconds} s", f"{_FAILED} `RESULTS_INVALID`")
    yield ("samples in which bad answers are counted", size(sample_answers.MAX_SEARCHED_BYTES), "a warning, and no count")
    yield ("one value in a log of inspect-ai", characters(json_stream.MAX_VALUE_CHARACTERS), f"{_FAILED} `RESULTS_INVALID`")
    yield ("times that an engine is lost", f"{transitions.MAX_ENGINES_LOST}", f"{_FAILED} `ENGINE_LOST`")
    yield ("files that the result cache looks at", f"{fingerprints.MAX_FILES:,}", "a run of its own")
    yield ("models of a job", f"{layout.MAX_MODELS}", f"{_FAILED} `RESULTS_INVALID`")
    yield ("metrics of a job", size(layout.MAX_KEPT_BYTES), f"{_FAILED} `RESULTS_INVALID`")
    yield ("`JobError.message`", f"{transitions.MAX_MESSAGE_BYTES:,} bytes", "it is shortened")
    yield ("`JobError.log_tail`", f"{transitions.MAX_TAIL_LINES} lines, {size(transitions.MAX_TAIL_BYTES)}", "ReadLog has all")
    yield ("warnings of a job", f"{size_limits.MAX_WARNINGS}, {size(size_limits.MAX_WARNING_BYTES)} each", "the first ones")


def size(size_bytes: int) -> str:
    """Write a size in the largest unit that fits."""
    unit, name = next((each for each in ((_GIB, "GiB"), (_MIB, "MiB"), (_KIB, "KiB")) if size_bytes >= each[0]), (1, "bytes"))
    return f"{size_bytes / unit:g} {name}"


def characters(count: int) -> str:
    """Write a length of a text."""
    return f"{count:,} characters"


def seconds(bounds: artifacts.ReadLimits) -> str:
    """Write a time."""
    return f"{bounds.max_seconds:g} s"


def reading(bounds: artifacts.ReadLimits) -> str:
    """Write how much may be read."""
    return f"{size(bounds.max_bytes)}, {seconds(bounds)}"


def process(bounds: artifacts.ReadLimits, use: limited_process.Limits) -> str:
    """Write how much may be read in a process."""
    return f"{reading(bounds)}, {size(use.memory_bytes)} of memory"
