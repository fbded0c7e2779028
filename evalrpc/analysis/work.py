"""What a process does for callers who compare. Each function imports the rest when it is called: the process does, and never
the server, which only names these functions. What only a server needs is not imported here, so that a process starts soon."""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from evalrpc.analysis.evidence import Evidence, Measured
from evalrpc.analysis.flip_lists import Flips, FlipsPart
from evalrpc.analysis.run_series import Series
from evalrpc.config import HarnessSettings
from evalrpc.errors import ReadLimitError
from evalrpc.files.read_budget import ReadBudget, ReadLimits
from evalrpc.harnesses.base import Harness
from evalrpc.harnesses.registry import build_harness
from evalrpc.v1.comparison_pb2 import (
    CompareJobsRequest,
    CompareJobsResponse,
    ListFlipsRequest,
    ListFlipsResponse,
    PlanComparisonRequest,
    PlanComparisonResponse,
)
from evalrpc.v1.history_pb2 import MetricTrend, TrendOptions
from evalrpc.v1.jobs_pb2 import JobInfo
from evalrpc.v1.suites_pb2 import Suite, SuiteDecision, SuiteEntry

Work = Callable[[Any, Sequence[JobInfo], Mapping[str, Harness], Path, ReadBudget], Any]
"""Something that reads the samples of jobs, with what it needs to know: a function of this module."""


class Assignment(NamedTuple):
    """Work, and what it is done with."""

    work: Work
    order: object
    """What the work needs to know."""
    jobs: Sequence[JobInfo]
    settings: Sequence[HarnessSettings]
    """Those of the jobs' harnesses."""
    data_dir: Path


class Outcome(Enum):
    """What became of work instead of an answer."""

    TAKES_LONG = 1


def carry_out(assignment: Assignment, limits: ReadLimits) -> Any:
    """Be called in the process: do work, with harnesses built from their settings."""
    return _work_within(ReadBudget(limits), assignment)


def try_out(assignment: Assignment, limits: ReadLimits) -> Any:
    """Be called in the process: do work, unless it takes more than the limits."""
    budget = ReadBudget(limits)
    try:
        return _work_within(budget, assignment)
    except ReadLimitError:
        if not budget.is_spent:
            raise
        return Outcome.TAKES_LONG


def _work_within(budget: ReadBudget, assignment: Assignment) -> Any:
    harnesses = {each.name: build_harness(each) for each in assignment.settings}
    return assignment.work(assignment.order, assignment.jobs, harnesses, assignment.data_dir, budget)


def compare(
    call: CompareJobsRequest, jobs: Sequence[JobInfo], harnesses: Mapping[str, Harness], data_dir: Path, budget: ReadBudget
) -> CompareJobsResponse:
    """Compare the other jobs with the first."""
    from evalrpc.analysis import comparison

    return comparison.compare(call, jobs[0], jobs[1:], harnesses, data_dir, budget)


def measure(
    order: tuple[Suite, SuiteEntry],
    jobs: Sequence[JobInfo],
    harnesses: Mapping[str, Harness],
    data_dir: Path,
    budget: ReadBudget,
) -> Measured:
    """Measure an entry of a suite by the first job, beside the second, the baseline, if there is one."""
    from evalrpc.analysis import suite_metrics

    baseline = jobs[1] if len(jobs) > 1 else None
    return suite_metrics.measure(*order, jobs[0], baseline, harnesses, data_dir, budget)


def decide(
    order: tuple[Suite, Sequence[Evidence], bool],
    jobs: Sequence[JobInfo],  # noqa: ARG001 - the shape of work
    harnesses: Mapping[str, Harness],  # noqa: ARG001
    data_dir: Path,  # noqa: ARG001
    budget: ReadBudget,  # noqa: ARG001
) -> SuiteDecision:
    """Decide over a suite, all of whose entries have been measured."""
    from evalrpc.analysis import decisions

    suite, evidence, has_ended = order
    return decisions.decide(suite, evidence, has_ended=has_ended)


def plan(
    call: PlanComparisonRequest, jobs: Sequence[JobInfo], harnesses: Mapping[str, Harness], data_dir: Path, budget: ReadBudget
) -> PlanComparisonResponse:
    """Plan a comparison from the samples of jobs, or from a ratio where there are none."""
    from evalrpc.analysis.planning import plan_from_jobs, plan_from_ratio

    return plan_from_jobs(call, jobs, harnesses, data_dir, budget) if jobs else plan_from_ratio(call)


def find_flips(
    call: ListFlipsRequest, jobs: Sequence[JobInfo], harnesses: Mapping[str, Harness], data_dir: Path, budget: ReadBudget
) -> Flips:
    """Find all flips of one metric between two jobs."""
    from evalrpc.analysis import flips

    return flips.find_flips(call, jobs, harnesses, data_dir, budget)


def read_flips(
    order: tuple[FlipsPart, int], jobs: Sequence[JobInfo], harnesses: Mapping[str, Harness], data_dir: Path, budget: ReadBudget
) -> ListFlipsResponse:
    """Read a page of flips that were found."""
    from evalrpc.analysis import flips

    part, page_size = order
    return flips.read_flips(part, page_size, jobs, harnesses, data_dir, budget)


def find_trends(
    order: tuple[TrendOptions, Sequence[Series]],
    jobs: Sequence[JobInfo],  # noqa: ARG001 - the shape of work
    harnesses: Mapping[str, Harness],  # noqa: ARG001
    data_dir: Path,  # noqa: ARG001
    budget: ReadBudget,
) -> list[MetricTrend]:
    """Say how each series goes."""
    from evalrpc.analysis import run_trends

    options, series = order
    return run_trends.find_trends(options, series, budget)
