"""Finds every bad field of a request, with its path. What a particular harness can't accept, it reports itself.

A module for each subject; `fields.py` has what holds for a field in whichever request it is.
"""

from evalrpc.server.validation.comparisons import comparison, flips, history, plan
from evalrpc.server.validation.evaluations import harness_name, suite_request
from evalrpc.server.validation.fields import cancel_reason, engine_id, metric_selectors, offsets
from evalrpc.server.validation.jobs import job_filter, log, submission, update, updated_fields, view, watch
from evalrpc.server.validation.requiring import page_size_of, require, require_job_id
from evalrpc.server.validation.samples import sample_listing, sample_media
from evalrpc.server.validation.suites import suite_run, suite_run_cancel, suite_run_watch, suite_runs, suite_submission

__all__ = [
    "cancel_reason",
    "comparison",
    "engine_id",
    "flips",
    "harness_name",
    "history",
    "job_filter",
    "log",
    "metric_selectors",
    "offsets",
    "page_size_of",
    "plan",
    "require",
    "require_job_id",
    "sample_listing",
    "sample_media",
    "submission",
    "suite_request",
    "suite_run",
    "suite_run_cancel",
    "suite_run_watch",
    "suite_runs",
    "suite_submission",
    "update",
    "updated_fields",
    "view",
    "watch",
]
