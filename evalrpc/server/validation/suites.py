"""What is wrong with calls about runs of suites."""

from evalrpc.errors import FieldViolation
from evalrpc.jobs.filters import canonical_prefix
from evalrpc.jobs.label_selectors import parse_selector
from evalrpc.jobs.size_limits import MAX_SUBMIT_SUITE_BYTES
from evalrpc.server.validation import fields
from evalrpc.server.validation.fields import Violations
from evalrpc.server.validation.jobs import watch
from evalrpc.v1.suites_pb2 import (
    CancelSuiteRunRequest,
    GetSuiteRunRequest,
    ListSuiteRunsRequest,
    SubmitSuiteRequest,
    SuiteRunView,
    WatchSuiteRunRequest,
)


def suite_submission(call: SubmitSuiteRequest) -> Violations:
    """Yield what is wrong with the parts of a SubmitSuiteRequest that its jobs don't have."""
    yield from fields.request_id(call.request_id)
    if (size_bytes := call.ByteSize()) > MAX_SUBMIT_SUITE_BYTES:
        yield FieldViolation("request", f"the message has {size_bytes} bytes; at most {MAX_SUBMIT_SUITE_BYTES} are allowed")
    if call.baseline_suite_run_id:
        yield from fields.job_id("baseline_suite_run_id", call.baseline_suite_run_id)


def suite_run(call: GetSuiteRunRequest) -> Violations:
    """Yield what is wrong with a GetSuiteRunRequest."""
    yield from fields.job_id("suite_run_id", call.suite_run_id)
    if call.view not in SuiteRunView.values():
        known = "set SUITE_RUN_VIEW_BASIC, or SUITE_RUN_VIEW_DECISION"
        yield FieldViolation("view", f"{call.view} is no view that this server knows: {known}")
    if not call.baseline_suite_run_id:
        return
    yield from fields.job_id("baseline_suite_run_id", call.baseline_suite_run_id)
    if call.view != SuiteRunView.SUITE_RUN_VIEW_DECISION:
        yield FieldViolation("baseline_suite_run_id", "takes the view SUITE_RUN_VIEW_DECISION")
    if call.baseline_suite_run_id.lower() == call.suite_run_id.lower():
        yield FieldViolation("baseline_suite_run_id", "is the run itself, which can't be compared with itself")


def suite_runs(call: ListSuiteRunsRequest) -> Violations:
    """Yield what is wrong with a ListSuiteRunsRequest."""
    yield from fields.at_most("suites", call.suites, fields.MAX_FILTER_VALUES)
    yield from fields.statuses("statuses", call.statuses)
    yield from fields.parsed("label_selector", call.label_selector, parse_selector)
    yield from fields.parsed("suite_run_id_prefix", call.suite_run_id_prefix, canonical_prefix)
    yield from fields.not_negative("page_size", call.page_size)


def suite_run_watch(call: WatchSuiteRunRequest) -> Violations:
    """Yield what is wrong with a WatchSuiteRunRequest."""
    yield from fields.job_id("suite_run_id", call.suite_run_id)
    yield from watch(call)


def suite_run_cancel(call: CancelSuiteRunRequest) -> Violations:
    """Yield what is wrong with a CancelSuiteRunRequest."""
    yield from fields.job_id("suite_run_id", call.suite_run_id)
    yield from fields.cancel_reason(call.reason)
