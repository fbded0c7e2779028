"""Metrics over many jobs, a page at a time.

The first page looks at all jobs that the filter takes, page by page of the store, and notes the places of those with points.
Then it reads jobs in their order and builds points until the page is full. Its token holds the place at which the next page
begins, and what has been decided: the order, and the newest job. The places are remembered for the next page, which so costs no
more than its own jobs; if they were forgotten, it looks again. Trends need all points, so they
come on a page after the last of them.
"""

import hashlib
import json
import math
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from itertools import groupby, islice
from typing import Final, NamedTuple

from evalrpc.analysis.run_series import RunSeries, Series
from evalrpc.files.read_budget import ReadBudget, ReadLimits
from evalrpc.jobs.metric_selectors import Selection
from evalrpc.jobs.size_limits import MAX_PAGE_BYTES
from evalrpc.protobuf.wire_format import field_size
from evalrpc.reading import page_tokens
from evalrpc.reading.job_results import JobResults
from evalrpc.reading.page_bound import PageBound
from evalrpc.reading.remembered import Remembered
from evalrpc.store.base import Store
from evalrpc.v1.history_pb2 import GetHistoryRequest, GetHistoryResponse, HistoryPoint
from evalrpc.v1.jobs_pb2 import JOB_STATUS_COMPLETED, JobFilter, JobInfo
from evalrpc.v1.results_pb2 import Metric

DEFAULT_STEP_LABEL: Final = "step"
MAX_POINTS: Final = 1000
LIMITS: Final = ReadLimits(max_bytes=0, max_seconds=120.0)
"""For a page. The first one looks at all jobs, of which there may be very many."""

_PAGE: Final = 100
_LENGTH_BYTES: Final = 8  # by which the length of a point grows with its metrics
_MAX_REMEMBERED: Final = 500_000  # places, of all listings
_PLACES_OF_A_LISTING: Final = 50  # for so many it takes as much memory, beside its own
_NEWEST: Final = 2**63 - 1
_ANY_JOB: Final = JobFilter()
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class _Places(NamedTuple):
    """Where the points of a listing are, in its order: 16 bytes for each job."""

    by_step: bool
    steps: "array[float]"
    """0 in a listing by time of creation, infinity for a job that has lost its step."""
    sequences: "array[int]"


class HistoryPlaces(Remembered[_Places]):
    """The places of recent listings, so that their next pages need not look at all jobs again. Thread-safe."""

    def __init__(self) -> None:
        super().__init__(_MAX_REMEMBERED, lambda places: _PLACES_OF_A_LISTING + len(places.steps))


class _Position(NamedTuple):
    """Where a page begins, and what its listing is like."""

    by_step: bool
    newest: int
    """The last job in the order of arrival that the listing has."""
    step: float
    sequence: int
    model: str
    metric_count: int
    """How many metrics of the first point were on the page before."""

    def encode(self, listing: GetHistoryRequest) -> str:
        """Return it as a token."""
        return page_tokens.encode_text(json.dumps(self), listing)


class _Piece(NamedTuple):
    """A point, or as much of one as fits onto a page, and where it begins."""

    point: HistoryPoint
    begin: int
    """How many metrics of the point are in the pieces before."""


class History:
    """Builds a page of GetHistory: scan all jobs, then get the page. With `owner`, only jobs of that owner are looked at. For
    one thread at a time; blocks.

    Raises InvalidRequestError for a bad token. Each step raises what `ReadBudget.spend` does.
    """

    def __init__(
        self,
        store: Store,
        results: JobResults,
        remembered: HistoryPlaces,
        call: GetHistoryRequest,
        page_size: int,
        budget: ReadBudget | None = None,
        owner: str | None = None,
    ) -> None:
        self.series: list[Series] = []
        """After `page()`: what the trends on that page are of."""
        self._store = store
        self._results = results
        self._budget = budget or ReadBudget(LIMITS)
        self._remembered = remembered
        self._page_size = page_size
        self._owner = owner
        self._filter = JobFilter()
        self._filter.CopyFrom(call.filter)
        if not call.filter.statuses:
            self._filter.statuses.append(JOB_STATUS_COMPLETED)
        self._selection = Selection(call.metrics)
        self._step_label = call.step_label or DEFAULT_STEP_LABEL
        self._listing = GetHistoryRequest(filter=call.filter, metrics=call.metrics, step_label=self._step_label)
        if call.HasField("trends"):
            self._listing.trends.CopyFrom(call.trends)
        self._position = _decode(call.page_token, self._listing)
        self._newest = self._position.newest if self._position else 0
        self._before = self._newest + 1 if self._position else None
        self._found: list[tuple[float, int]] = []
        self._all_have_steps = True
        self._places = remembered.get(self._key(self._position.by_step)) if self._position else None

    def scan(self) -> bool:
        """Look at the next jobs of the store, newest first, unless that is remembered; return whether there may be more."""
        if self._places is not None:
            return False
        listed = self._store.list_jobs(self._filter, self._before, _PAGE, owner=self._owner)
        for sequence, job in listed:
            self._budget.spend()
            self._before = sequence
            self._newest = max(self._newest, sequence)
            if self._has_points(job):
                step = _number(job.labels.get(self._step_label, ""))
                self._all_have_steps = self._all_have_steps and step is not None
                self._found.append((math.inf if step is None else step, sequence))
        return bool(listed)

    def page(self) -> GetHistoryResponse:
        """Return the page: by step if all points of the listing have one, else in the order of creation."""
        places = self._sorted_places() if self._places is None else self._places
        points: list[HistoryPoint] = []
        bound = PageBound(self._page_size)
        for index in range(self._first_index(places), len(places.sequences)):
            self._budget.spend()
            for piece in self._pieces_at(places.sequences[index]):
                if not bound.takes(piece.point):
                    self._remembered.put(self._key(places.by_step), places)
                    step, sequence = places.steps[index], places.sequences[index]
                    position = _Position(places.by_step, self._newest, step, sequence, piece.point.model, piece.begin)
                    return GetHistoryResponse(points=points, next_page_token=position.encode(self._listing))
                points.append(piece.point)
        if not self._listing.HasField("trends"):
            return GetHistoryResponse(points=points)
        if points:
            self._remembered.put(self._key(places.by_step), places)
            end = _Position(places.by_step, self._newest, math.inf, self._newest + 1, "", 0)
            return GetHistoryResponse(points=points, next_page_token=end.encode(self._listing))
        self.series = self._all_series(places)
        return GetHistoryResponse()

    def _all_series(self, places: _Places) -> list[Series]:
        series = RunSeries(self._listing.trends)
        for sequence in places.sequences:
            self._budget.spend()
            for piece in self._pieces_at(sequence):
                series.add(piece.point)
        return series.sorted()

    def _key(self, by_step: bool) -> bytes:
        """Return what tells this listing from others."""
        listing = self._listing.SerializeToString(deterministic=True)  # which may be as large as a request
        return hashlib.sha256(b"%d %d %a %s" % (by_step, self._newest, self._owner, listing)).digest()

    def _sorted_places(self) -> _Places:
        by_step = self._position.by_step if self._position else self._all_have_steps
        found = sorted(self._found if by_step else ((0.0, sequence) for _, sequence in self._found))
        return _Places(by_step, array("d", (step for step, _ in found)), array("q", (sequence for _, sequence in found)))

    def _first_index(self, places: _Places) -> int:
        """Return the index of the place at which the page begins."""
        if self._position is None:
            return 0
        begin = (self._position.step, self._position.sequence)
        return bisect_left(range(len(places.steps)), begin, key=lambda index: (places.steps[index], places.sequences[index]))

    def _has_points(self, job: JobInfo) -> bool:
        if any(self._selection.takes(metric) for result in job.results.values() for metric in result.metrics):
            return True
        is_truncated = any(result.metrics_truncated for result in job.results.values())
        return is_truncated and any(self._selection.takes(each.metric) for each in self._results.metrics(job, self._budget))

    def _pieces_at(self, sequence: int) -> Iterator[_Piece]:
        """Yield the points of a job, without those on the pages before."""
        listed = self._store.list_jobs(_ANY_JOB, sequence + 1, 1)
        if not listed or listed[0].sequence != sequence:
            return  # deleted since
        job = listed[0].job
        position = self._position
        model, count = "", 0
        if position is not None and position.sequence == sequence:
            model, count = position.model, position.metric_count
        for name, of_model in groupby(self._results.metrics(job, self._budget), key=lambda each: each.model):
            if name >= model:
                metrics = (each.metric for each in of_model if self._selection.takes(each.metric))
                yield from self._pieces(job, name, metrics, count if name == model else 0)

    def _pieces(self, job: JobInfo, model: str, metrics: Iterator[Metric], begin: int) -> Iterator[_Piece]:
        """Yield the point of a model, in pieces of which each fits onto a page, from one of its metrics on."""
        empty = HistoryPoint(
            job_id=job.job_id,
            created_at=job.created_at,
            completed_at=job.completed_at,
            labels=job.labels,
            step=_number(job.labels.get(self._step_label, "")),
            model=model,
        )
        room_bytes = MAX_PAGE_BYTES - field_size(empty.ByteSize()) - _LENGTH_BYTES
        point, left_bytes = _copy(empty), room_bytes
        for metric in islice(metrics, begin, None):
            left_bytes -= field_size(metric.ByteSize())
            if point.metrics and left_bytes < 0:
                yield _Piece(point, begin)
                begin += len(point.metrics)
                point, left_bytes = _copy(empty), room_bytes - field_size(metric.ByteSize())
            point.metrics.append(metric)  # which copies it: as messages of their own, many take ten times as much memory
        if point.metrics:
            yield _Piece(point, begin)


def _copy(point: HistoryPoint) -> HistoryPoint:
    copy = HistoryPoint()
    copy.CopyFrom(point)
    return copy


def _decode(token: str, listing: GetHistoryRequest) -> _Position | None:
    text = page_tokens.decode_text(token, listing)
    if text is None:
        return None
    try:
        by_step, newest, step, sequence, model, metric_count = json.loads(text)
        position = _Position(bool(by_step), int(newest), float(step), int(sequence), str(model), int(metric_count))
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise page_tokens.invalid_token() from None
    if not all(0 <= number < _NEWEST for number in (position.newest, position.sequence, position.metric_count)):
        raise page_tokens.invalid_token()
    return position


def _number(text: str) -> float | None:
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    return number if math.isfinite(number) else None
