"""The score of each sample of a task, read from any number of rows into a few flat arrays, and paired with another job's.

A row gives a metric's value under the metric's name, or under `metric,filter` as in the aggregate file; either may be in a
table `metrics`. A row with a `filter` belongs to that filter only. Anything but a number or boolean, which may be written as
text, counts as absent; so does NaN, which stands for a sample that was not scored.
"""

import json
import math
from array import array
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalrpc.results.metrics import number

MAX_VALUES: Final = 8_000_000
"""Values that are read per task, over all metrics; those after them count as absent."""

_MAX_VALUE: Final = 1e100  # no sum of such values overflows; a larger one makes the mean NaN, as it should
_TOLERANCE: Final = 1e-4
_TRUTH: Final = {"True": True, "False": False}


class MetricKey(NamedTuple):
    """A metric of one task."""

    metric: str
    filter: str


@dataclass(frozen=True)
class SampleValues:
    """One value for each sample. Several rows of one sample are averaged."""

    ids: NDArray[np.int64]
    """Numbers that stand for the samples' ids; sorted and unique."""
    values: NDArray[np.float64]
    documents: NDArray[np.int64]
    """Digests of the samples' documents; 0 where the harness gives none."""

    def mean_is(self, value: float) -> bool:
        """Return whether a metric's value is the mean of these, to four digits: then a test of the mean tests the metric."""
        return bool(len(self.values)) and math.isclose(self.values.mean(), value, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


NO_VALUES: Final = SampleValues(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))


@dataclass(frozen=True)
class Pairs:
    """The values of two jobs for the samples that both have a value of."""

    baseline: NDArray[np.float64]
    candidate: NDArray[np.float64]
    unpaired_count: int
    """Samples that only one of the jobs has a value of."""
    other_document_count: int
    """Samples that both jobs have by the same id, but of another document, and that are therefore no pairs."""

    @property
    def count(self) -> int:
        """Number of pairs."""
        return len(self.baseline)

    @property
    def differences(self) -> NDArray[np.float64]:
        """Candidate minus baseline."""
        return self.candidate - self.baseline

    @property
    def gains(self) -> int:
        """Number of pairs in which the candidate's value is larger."""
        return int(np.count_nonzero(self.candidate > self.baseline))

    @property
    def losses(self) -> int:
        """Number of pairs in which the candidate's value is smaller."""
        return int(np.count_nonzero(self.candidate < self.baseline))

    def are_zero_or_one(self) -> bool:
        """Return whether every value is 0 or 1."""
        return all(bool(np.all((values == 0) | (values == 1))) for values in (self.baseline, self.candidate))


def pair(baseline: SampleValues, candidate: SampleValues) -> Pairs:
    """Pair the samples with the same id, unless their documents are known to differ."""
    _, ours, theirs = np.intersect1d(baseline.ids, candidate.ids, assume_unique=True, return_indices=True)
    documents, their_documents = baseline.documents[ours], candidate.documents[theirs]
    same = (documents == their_documents) | (documents == 0) | (their_documents == 0)
    ours, theirs, other_count = ours[same], theirs[same], int(np.count_nonzero(~same))
    unpaired_count = len(baseline.ids) + len(candidate.ids) - 2 * len(ours)
    return Pairs(baseline.values[ours], candidate.values[theirs], unpaired_count, other_count)


def read_values(rows: Iterable[Mapping[str, object]], wanted: Collection[MetricKey]) -> Mapping[MetricKey, SampleValues]:
    """Extract the values of the wanted metrics from the rows of a task. Memory is 24 bytes per value."""
    columns = [_Column(key) for key in wanted]
    of_rows = _Columns(columns)
    values_left = MAX_VALUES
    for row in rows:
        sample_id = _id(row.get("doc_id"))
        if sample_id is not None:
            values_left -= of_rows.take(_Sample(sample_id, _document(row.get("doc_hash"))), row)
        if values_left <= 0:
            break
    return {column.key: column.averaged() for column in columns}


class _Sample(NamedTuple):
    id: int
    document: int


class _Column:
    """The values of one metric, as they are read."""

    def __init__(self, key: MetricKey) -> None:
        self.key = key
        self._ids = array("q")
        self._values = array("d")
        self._documents = array("q")

    def take(self, sample: _Sample, value: float) -> None:
        """Add a value of a sample."""
        self._ids.append(sample.id)
        self._documents.append(sample.document)
        self._values.append(value if abs(value) <= _MAX_VALUE else math.nan)

    def averaged(self) -> SampleValues:
        """Return one value for each sample."""
        ids, values = np.frombuffer(self._ids, np.int64), np.frombuffer(self._values, np.float64)
        unique, first, rows, counts = np.unique(ids, return_index=True, return_inverse=True, return_counts=True)
        documents = np.frombuffer(self._documents, np.int64)[first]
        if len(unique) > 1 and np.all(documents == documents[0]):
            documents = np.zeros_like(documents)  # lmms-eval gives all documents the same hash
        return SampleValues(unique, np.bincount(rows, weights=values) / counts, documents)


class _Columns:
    """Finds the columns that a row has values of by the row's keys, however many columns there are."""

    def __init__(self, columns: Iterable[_Column]) -> None:
        self._all = _ByName()
        self._of_filter: defaultdict[str, _ByName] = defaultdict(_ByName)
        for column in columns:
            self._all.add(column)
            self._of_filter[column.key.filter].add(column)

    def take(self, sample: _Sample, row: Mapping[str, object]) -> int:
        """Add the values in a row, and return how many there are."""
        if "filter" not in row:
            return self._all.take(sample, row)
        answer_filter = row["filter"]
        of_filter = self._of_filter.get(answer_filter) if isinstance(answer_filter, str) else None
        return of_filter.take(sample, row) if of_filter else 0


class _ByName:
    """Columns by the keys that their values may have in a row."""

    def __init__(self) -> None:
        self._count = 0
        self._plain: defaultdict[str, list[_Column]] = defaultdict(list)
        self._full: defaultdict[str, list[_Column]] = defaultdict(list)

    def add(self, column: _Column) -> None:
        """Add a column."""
        self._count += 1
        self._plain[column.key.metric].append(column)
        self._full[f"{column.key.metric},{column.key.filter}"].append(column)

    def take(self, sample: _Sample, row: Mapping[str, object]) -> int:
        """Add the first value that a row has of each column, and return how many there are."""
        taken: set[_Column] = set()
        nested = row.get("metrics")
        for table in (row, nested) if isinstance(nested, dict) else (row,):
            for columns in (self._plain, self._full):
                for name in table.keys() & columns.keys():
                    value = _value(table[name])
                    if value is not None:
                        new = [column for column in columns[name] if column not in taken]
                        for column in new:
                            column.take(sample, value)
                        taken.update(new)
                if len(taken) == self._count:
                    return self._count
        return len(taken)


def _value(cell: object) -> float | None:
    if isinstance(cell, str):
        cell = _TRUTH.get(cell, number(cell))
    return cell if isinstance(cell, int | float) and cell == cell else None  # NaN is not equal to itself


def _id(doc_id: object) -> int | None:
    """Return a 64-bit integer for an id: the id itself if it is one, else a digest; None for what can't be an id."""
    if isinstance(doc_id, int) and -(2**63) <= doc_id < 2**63:
        return int(doc_id)
    return _digest(json.dumps(doc_id)) if isinstance(doc_id, str | int | float) else None


def _document(doc_hash: object) -> int:
    return _digest(doc_hash) if isinstance(doc_hash, str) and doc_hash else 0


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(errors="replace"), digest_size=8).digest(), signed=True)
