"""The metrics of a job, a page at a time, also those that its message lacks."""

from concurrent.futures import Executor
from typing import Final, NamedTuple

from evalrpc.errors import MetricNotFoundError, ReadLimitError
from evalrpc.files.read_budget import ReadBudget, ReadLimits
from evalrpc.jobs.metric_selectors import Selection
from evalrpc.reading import page_tokens
from evalrpc.reading.disk import read_on
from evalrpc.reading.job_results import JobResults
from evalrpc.reading.page_bound import PageBound
from evalrpc.v1.jobs_pb2 import JobInfo
from evalrpc.v1.results_pb2 import ListMetricsRequest, ListMetricsResponse, ModelMetric
from evalrpc.watching.feed import Feed

LIMITS: Final = ReadLimits(max_bytes=0, max_seconds=10.0)
"""For a page of those that the message lacks. It ends early, since a selection may take none of very many."""


class MetricLister:
    """Lists metrics for callers. Runs on the event loop."""

    def __init__(self, feed: Feed, results: JobResults, listers: Executor) -> None:
        self._feed = feed
        self._results = results
        self._listers = listers

    async def list_metrics(self, job_id: str, call: ListMetricsRequest, page_size: int) -> ListMetricsResponse:
        """List a page of metrics.

        Raises JobNotFoundError, MetricNotFoundError for an unknown model, FileUnavailableError, FileUnreadableError,
        ReadLimitError, InvalidRequestError for a bad token.
        """
        job = await self._feed.read_job(job_id)
        if call.model and call.model not in job.results:
            raise _no_model(job, call.model)
        listing = _listing(job, call)
        position = page_tokens.decode(call.page_token, listing) or 0
        budget = ReadBudget(LIMITS)
        page = await read_on(self._listers, lambda: self._page(job, call, position, page_size, budget), budget.stop)
        token = "" if page.next_position is None else page_tokens.encode(page.next_position, listing)
        return ListMetricsResponse(metrics=page.metrics, next_page_token=token)

    def _page(self, job: JobInfo, call: ListMetricsRequest, position: int, page_size: int, budget: ReadBudget) -> "_Page":
        selection = Selection(call.metrics)
        page: list[ModelMetric] = []
        bound = PageBound(page_size)
        end = position
        try:
            for metric, next_end in self._results.metric_rows(job, position, budget):
                if call.model and metric.model > call.model:
                    break
                if (not call.model or metric.model == call.model) and selection.takes(metric.metric):
                    if not bound.takes(metric):
                        return _Page(page, end)
                    page.append(metric)
                end = next_end
        except ReadLimitError:
            if end == position:
                raise
            return _Page(page, end)
        return _Page(page, None)


class _Page(NamedTuple):
    """Some metrics, and the position of the next; None at the end."""

    metrics: list[ModelMetric]
    next_position: int | None


def _listing(job: JobInfo, call: ListMetricsRequest) -> ListMetricsRequest:
    """Describe the listing: a position holds for the results as they are now. Those of a running job may become more."""
    counts = ",".join(f"{model}={job.results[model].metric_count}" for model in sorted(job.results))
    return ListMetricsRequest(job_id=job.job_id, model=call.model, metrics=call.metrics, page_token=f"{job.attempt}:{counts}")


def _no_model(job: JobInfo, model: str) -> MetricNotFoundError:
    known = ", ".join(sorted(job.results)) or "none"
    return MetricNotFoundError(
        f"job {job.job_id} has no results of model {model!r}; it has: {known}",
        metadata={"resource_type": "evalrpc.v1.ModelResult", "resource_name": model[:255]},
    )
