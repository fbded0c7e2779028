"""Metrics over many jobs, a page at a time.

A page takes two passes. The first looks at all jobs that the filter takes, page by page of the store, and remembers which come
next: only their places, so memory is bounded. The second reads those jobs and builds their points until the page is full.

A token holds the place at which the next page begins, and what the first page has decided: the order, and the newest job.
"""

import heapq
import json
import math
import re
from collections.abc import Iterator
from itertools import groupby, islice
from typing import Final, NamedTuple

from evalrpc.errors import JobNotFoundError
from evalrpc.jobs.metric_selectors import Selection
from evalrpc.jobs.size_limits import MAX_PAGE_BYTES
from evalrpc.protobuf.wire_format import field_size
from evalrpc.reading import page_tokens
from evalrpc.reading.job_results import JobResults
from evalrpc.reading.page_bound import PageBound
from evalrpc.store.base import ListedJob, Store
from evalrpc.v1.history_pb2 import GetHistoryRequest, GetHistoryResponse, HistoryPoint
from evalrpc.v1.jobs_pb2 import JOB_STATUS_COMPLETED, JobFilter, JobInfo
from evalrpc.v1.results_pb2 import Metric

DEFAULT_STEP_LABEL: Final = "step"
MAX_POINTS: Final = 1000

_PAGE: Final = 100
_LENGTH_BYTES: Final = 8  # by which the length of a point grows with its metrics
_NEWEST: Final = 2**63 - 1
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class _Place(NamedTuple):
    """The place of a job among all of a listing."""

    step: float
    """What the listing is ordered by first; 0 in one by time of creation, infinity for a job that has lost its step."""
    sequence: int
    job_id: str


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
    """Builds a page of GetHistory: scan all jobs, then get the page. For one thread at a time; blocks.

    Raises InvalidRequestError for a bad token.
    """

    def __init__(self, store: Store, results: JobResults, call: GetHistoryRequest, page_size: int) -> None:
        self._store = store
        self._results = results
        self._page_size = page_size
        self._filter = JobFilter()
        self._filter.CopyFrom(call.filter)
        if not call.filter.statuses:
            self._filter.statuses.append(JOB_STATUS_COMPLETED)
        self._selection = Selection(call.metrics)
        self._step_label = call.step_label or DEFAULT_STEP_LABEL
        self._listing = GetHistoryRequest(filter=call.filter, metrics=call.metrics, step_label=self._step_label)
        self._position = _decode(call.page_token, self._listing)
        self._before = self._position.newest + 1 if self._position else None
        self._newest = self._position.newest if self._position else 0
        self._by_step = _FirstPlaces(page_size + 1)
        self._by_creation = _FirstPlaces(page_size + 1)
        self._all_have_steps = True

    def scan(self) -> bool:
        """Look at the next jobs of the store, newest first; return whether there may be more."""
        listed = self._store.list_jobs(self._filter, self._before, _PAGE)
        for each in listed:
            self._before = each.sequence
            self._newest = max(self._newest, each.sequence)
            self._place(each)
        return len(listed) == _PAGE

    def page(self) -> GetHistoryResponse:
        """Return the page: by step if all points of the listing have one, else in the order of creation."""
        by_step = self._position.by_step if self._position else self._all_have_steps
        places = (self._by_step if by_step else self._by_creation).sorted()
        points: list[HistoryPoint] = []
        bound = PageBound(self._page_size)
        for place in places:
            for piece in self._pieces_at(place):
                if not bound.takes(piece.point):
                    position = _Position(by_step, self._newest, place.step, place.sequence, piece.point.model, piece.begin)
                    return GetHistoryResponse(points=points, next_page_token=position.encode(self._listing))
                points.append(piece.point)
        token = self._after(places[-1], by_step).encode(self._listing) if len(places) > self._page_size else ""
        return GetHistoryResponse(points=points, next_page_token=token)

    def _after(self, place: _Place, by_step: bool) -> _Position:
        """Return where to go on after a job: some before it were deleted since the scan, so the page is not full."""
        return _Position(by_step, self._newest, place.step, place.sequence + 1, "", 0)

    def _place(self, listed: ListedJob) -> None:
        """Remember a job that has points, and that is not on the pages before."""
        step = _number(listed.job.labels.get(self._step_label, ""))
        by_step = _Place(math.inf if step is None else step, listed.sequence, listed.job.job_id)
        by_creation = _Place(0.0, listed.sequence, listed.job.job_id)
        if self._position is not None:
            place = by_step if self._position.by_step else by_creation
            if place[:2] < (self._position.step, self._position.sequence):
                return
        if self._has_points(listed.job):
            self._all_have_steps = self._all_have_steps and step is not None
            self._by_step.add(by_step)
            self._by_creation.add(by_creation)

    def _has_points(self, job: JobInfo) -> bool:
        if any(self._selection.takes(metric) for result in job.results.values() for metric in result.metrics):
            return True
        is_truncated = any(result.metrics_truncated for result in job.results.values())
        return is_truncated and any(self._selection.takes(each.metric) for each in self._results.metrics(job))

    def _pieces_at(self, place: _Place) -> Iterator[_Piece]:
        """Yield the points of a job, without those on the pages before."""
        try:
            job = self._store.job(place.job_id).parse()
        except JobNotFoundError:
            return  # deleted since the scan
        position = self._position
        model, count = "", 0
        if position is not None and position.sequence == place.sequence:
            model, count = position.model, position.metric_count
        for name, of_model in groupby(self._results.metrics(job), key=lambda each: each.model):
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
        piece: list[Metric] = []
        left_bytes = room_bytes
        for metric in islice(metrics, begin, None):
            left_bytes -= field_size(metric.ByteSize())
            if piece and left_bytes < 0:
                yield _Piece(_with_metrics(empty, piece), begin)
                begin += len(piece)
                piece, left_bytes = [], room_bytes - field_size(metric.ByteSize())
            piece.append(metric)
        if piece:
            yield _Piece(_with_metrics(empty, piece), begin)


class _FirstPlaces:
    """The first few of very many places, in their order."""

    def __init__(self, max_count: int) -> None:
        self._max_count = max_count
        self._places: list[_Place] = []

    def add(self, place: _Place) -> None:
        """Take one, and forget those that can't be among the first any more."""
        self._places.append(place)
        if len(self._places) >= 2 * self._max_count:
            self._places = self.sorted()

    def sorted(self) -> list[_Place]:
        """Return the first ones of all that were added."""
        return heapq.nsmallest(self._max_count, self._places)


def _with_metrics(empty: HistoryPoint, metrics: list[Metric]) -> HistoryPoint:
    point = HistoryPoint(metrics=metrics)
    point.MergeFrom(empty)
    return point


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
