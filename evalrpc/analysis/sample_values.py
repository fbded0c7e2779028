"""The score of each sample of a task, read from any number of rows into a few flat arrays, and paired with another job's.

A row gives a metric's value under the metric's name, or under `metric,filter` as in the aggregate file; either may be in a
table `metrics`. A row with a `filter` belongs to that filter only. Anything but a number or boolean, which may be written as
text, counts as absent; so does NaN, which stands for a sample that was not scored.
"""

import hashlib
import json
import math
import re
from array import array
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evalrpc.analysis.answer_counts import AnswerCounter
from evalrpc.analysis.sample_fields import HARNESS_CLUSTERS, MAX_OFFERED, ClusterField, offered_fields
from evalrpc.reading.sample_filters import id_in
from evalrpc.results.metrics import sample_value
from evalrpc.v1.comparison_pb2 import AnswerCounts

MAX_VALUES: Final = 8_000_000
"""Values that are read per task, over all metrics; those after them count as absent."""

_MAX_SCANNED: Final = 8  # of so few columns each is looked for in every row
_MAX_VALUE: Final = 1e100  # no sum of such values overflows; a larger one makes the mean NaN, as it should
_TOLERANCE: Final = 1e-4
_HASH_OF_NONE: Final = hashlib.sha256(b"null").hexdigest()
"""What lmms-eval gives every document for a hash."""
_SAID: Final = ("doc_hash", "target_hash", "target", "prompt_hash")
"""Where a row says something of its question: of its document, and last of how that is put into words."""
_NOT_SAID: Final = 0
_MAX_CODE: Final = 2**32 - 1
_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,17}", re.ASCII)
"""An id that is a number of 64 bits as text. Harnesses write one as either."""


class MetricKey(NamedTuple):
    """A metric of one task."""

    metric: str
    filter: str


class Repeats(NamedTuple):
    """How samples were repeated."""

    counts: NDArray[np.int64]
    """The number of values of each sample."""
    variances: NDArray[np.float64]
    """The variance of the values of each sample; NaN where there is only one."""


@dataclass(frozen=True)
class SampleValues:
    """One value for each sample. Several rows of one sample are averaged."""

    ids: NDArray[np.int64]
    """Numbers that stand for the samples' ids; sorted and unique."""
    values: NDArray[np.float64]
    questions: NDArray[np.uint32]
    """What the samples' rows say of their questions in this process: for each sample a code for each of `_SAID`, 0 where its
    row does not say it."""
    clusters: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Numbers that stand for the samples' clusters in this process; 0 where a sample has none. Empty if none has."""
    repeats: Repeats | None = None
    """None if each sample has one value."""
    positions: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Where the samples' first rows begin. Empty unless asked for."""

    def mean_is(self, value: float) -> bool:
        """Return whether a metric's value is the mean of these, to four digits: then a test of the mean tests the metric."""
        return bool(len(self.values)) and math.isclose(self.values.mean(), value, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def nothing_said(count: int) -> NDArray[np.uint32]:
    """Return the `questions` of so many samples whose rows say nothing of them."""
    return np.full((count, len(_SAID)), _NOT_SAID, np.uint32)


NO_VALUES: Final = SampleValues(np.empty(0, np.int64), np.empty(0), nothing_said(0))


@dataclass(frozen=True)
class Pairs:
    """The values of two jobs for the samples that both have a value of."""

    baseline: NDArray[np.float64]
    candidate: NDArray[np.float64]
    baseline_places: NDArray[np.int64] | slice
    """The places of the pairs among the baseline's samples."""
    candidate_places: NDArray[np.int64] | slice
    unpaired_count: int
    """Samples that only one of the jobs has a value of."""
    other_document_count: int
    """Samples that both jobs have by the same id, but of another document, and that are therefore no pairs."""
    other_prompt_count: int
    """Pairs whose document was put to the two models in other words."""

    @property
    def has_ids(self) -> bool:
        """Whether some ids are in both jobs."""
        return self.count + self.other_document_count > 0

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

    @property
    def scale(self) -> float:
        """How far apart the values are: 1 for those of 0 and 1, also where all are the same."""
        if self.are_zero_or_one():
            return 1.0
        return float(max(self.baseline.max(), self.candidate.max()) - min(self.baseline.min(), self.candidate.min()))

    def are_zero_or_one(self) -> bool:
        """Return whether every value is 0 or 1."""
        return all(bool(np.all((values == 0) | (values == 1))) for values in (self.baseline, self.candidate))


def pair(baseline: SampleValues, candidate: SampleValues) -> Pairs:
    """Pair the samples with the same id, unless their documents are known to differ."""
    ours: NDArray[np.int64] | slice
    theirs: NDArray[np.int64] | slice
    if np.array_equal(baseline.ids, candidate.ids):
        ours = theirs = slice(None)
    else:
        _, ours, theirs = np.intersect1d(baseline.ids, candidate.ids, assume_unique=True, return_indices=True)
    differing = _differing(baseline.questions[ours], candidate.questions[theirs])
    same: NDArray[np.bool_] = ~np.any(differing[:, :-1], axis=1)
    other_prompt_count = int(np.count_nonzero(differing[same, -1]))
    other_count = int(np.count_nonzero(~same))
    if other_count:
        ours, theirs = _places(ours, same), _places(theirs, same)
    values, their_values = baseline.values[ours], candidate.values[theirs]
    unpaired_count = len(baseline.ids) + len(candidate.ids) - 2 * len(values)
    return Pairs(values, their_values, ours, theirs, unpaired_count, other_count, other_prompt_count)


def _differing(questions: NDArray[np.uint32], others: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Return where two questions both say something, and not the same."""
    differing: NDArray[np.bool_] = (questions != others) & (questions != _NOT_SAID) & (others != _NOT_SAID)
    return differing


def _places(places: NDArray[np.int64] | slice, taken: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.flatnonzero(taken) if isinstance(places, slice) else places[taken]


def clusters_of(pairs: Pairs, baseline: SampleValues, candidate: SampleValues) -> NDArray[np.int64]:
    """Return the clusters of pairs, numbered from 0 on in the order in which they first appear.

    The baseline says which it is, or else the candidate. A sample without a cluster is one of its own.
    """
    codes = np.zeros(pairs.count, np.int64)
    for samples, places in ((candidate, pairs.candidate_places), (baseline, pairs.baseline_places)):
        if len(samples.clusters):
            found = samples.clusters[places]
            codes = np.where(found != 0, found, codes)
    _, first, numbers = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))  # the codes differ from process to process, so nothing may depend on theirs
    numbered = order[numbers].astype(np.int64)
    alone = codes == 0
    numbered[alone] = len(first) + np.arange(np.count_nonzero(alone))
    return np.unique(numbered, return_inverse=True)[1].astype(np.int64) if alone.any() else numbered


class TaskSamples(NamedTuple):
    """What the samples of a task say."""

    values: Mapping[MetricKey, SampleValues]
    """By wanted metric."""
    answers: AnswerCounts | None
    """How good the answers are. None if the samples have none."""
    has_clusters: bool
    """Whether any sample has the field that says its cluster."""
    offered_fields: Sequence[str]
    """Some fields by which the samples could be clustered."""


NO_SAMPLES: Final = TaskSamples({}, None, has_clusters=False, offered_fields=())


def read_samples(
    rows: Iterable[Mapping[str, object]],
    wanted: Collection[MetricKey],
    clusters: ClusterField = HARNESS_CLUSTERS,
    position: Callable[[], int] | None = None,
) -> TaskSamples:
    """Extract the values of the wanted metrics from the rows of a task. Memory is 32 bytes per value, and 8 for clusters.

    `position` says where the current row begins, and is asked if positions are wanted; they take 8 bytes.
    """
    columns = [_Column(key) for key in wanted]
    of_rows = _ScannedColumns(columns) if len(columns) <= _MAX_SCANNED else _Columns(columns)
    answers = AnswerCounter()
    offered: Sequence[str] = ()
    has_clusters = False
    values_left = MAX_VALUES
    for row in rows:
        answers.take(row)
        sample_id = _id(row)
        if sample_id is None:
            continue
        cluster = clusters.code(row)
        has_clusters = has_clusters or cluster != 0
        offered = offered or tuple(islice(offered_fields(row), MAX_OFFERED))
        begin = position() if position is not None else -1
        values_left -= of_rows.take(_Sample(sample_id, _question(row), cluster, begin), row)
        if values_left <= 0:
            break
    return TaskSamples({column.key: column.averaged() for column in columns}, answers.counts(), has_clusters, offered)


class _Sample(NamedTuple):
    id: int
    question: Sequence[int]
    cluster: int
    position: int


class _Column:
    """The values of one metric, as they are read."""

    def __init__(self, key: MetricKey) -> None:
        self.key = key
        self.places = (key.metric, f"{key.metric},{key.filter}")
        """The names under which a row may have its value."""
        self._ids = array("q")
        self._values = array("d")
        self._questions = array("I")  # several for each
        self._clusters = array("q")  # empty until the first row with one
        self._positions = array("q")  # empty unless they are wanted

    def take(self, sample: _Sample, value: float) -> None:
        """Add a value of a sample."""
        if sample.cluster or self._clusters:
            if len(self._clusters) < len(self._ids):
                self._clusters.extend(bytes(len(self._ids) - len(self._clusters)))
            self._clusters.append(sample.cluster)
        if sample.position >= 0:
            self._positions.append(sample.position)
        self._ids.append(sample.id)
        self._questions.extend(sample.question)
        self._values.append(value if abs(value) <= _MAX_VALUE else math.nan)

    def averaged(self) -> SampleValues:
        """Return one value for each sample."""
        ids, values, clusters, positions = (
            np.frombuffer(column, column.typecode) for column in (self._ids, self._values, self._clusters, self._positions)
        )
        questions = np.frombuffer(self._questions, np.uint32).reshape(-1, len(_SAID))
        if np.all(ids[1:] > ids[:-1]):
            return SampleValues(ids, values, _told_apart(questions), clusters, None, positions)
        unique, first, rows, counts = np.unique(ids, return_index=True, return_inverse=True, return_counts=True)
        means = np.bincount(rows, weights=values) / counts
        repeats = _repeats(values - means[rows], rows, counts) if len(unique) < len(ids) else None
        clusters, positions = (column[first] if len(column) else column for column in (clusters, positions))
        return SampleValues(unique, means, _told_apart(questions[first]), clusters, repeats, positions)


def _told_apart(questions: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return what is said of questions, without what is said of all alike: lmms-eval gives all documents one hash."""
    alike = (questions == questions[:1]).all(axis=0)
    return np.where(alike, np.uint32(_NOT_SAID), questions) if len(questions) > 1 and alike.any() else questions


def _repeats(deviations: NDArray[np.float64], rows: NDArray[np.int64], counts: NDArray[np.int64]) -> Repeats:
    squares = np.bincount(rows, weights=deviations**2)
    return Repeats(counts, np.where(counts > 1, squares / np.maximum(counts - 1, 1), math.nan))


class _ScannedColumns:
    """Looks for each of few columns in every row: faster than to look at all keys of the row."""

    def __init__(self, columns: Sequence[_Column]) -> None:
        self._columns = columns

    def take(self, sample: _Sample, row: Mapping[str, object]) -> int:
        """Add the values in a row, and return how many there are."""
        count = 0
        nested = row.get("metrics")
        tables = (row, nested) if isinstance(nested, dict) else (row,)
        has_filter = "filter" in row
        for column in self._columns:
            if has_filter and row["filter"] != column.key.filter:
                continue
            value = _first_value(tables, column.places)
            if value is not None:
                column.take(sample, value)
                count += 1
        return count


def _first_value(tables: Iterable[Mapping[str, object]], names: Iterable[str]) -> float | None:
    for table in tables:
        for name in names:
            if name in table and (value := sample_value(table[name])) is not None:
                return value
    return None


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
        plain, full = column.places
        self._plain[plain].append(column)
        self._full[full].append(column)

    def take(self, sample: _Sample, row: Mapping[str, object]) -> int:
        """Add the first value that a row has of each column, and return how many there are."""
        taken: set[_Column] = set()
        nested = row.get("metrics")
        for table in (row, nested) if isinstance(nested, dict) else (row,):
            for columns in (self._plain, self._full):
                for name in table.keys() & columns.keys():
                    value = sample_value(table[name])
                    if value is not None:
                        new = [column for column in columns[name] if column not in taken]
                        for column in new:
                            column.take(sample, value)
                        taken.update(new)
                if len(taken) == self._count:
                    return self._count
        return len(taken)


def _id(row: Mapping[str, object]) -> int | None:
    """Return a 64-bit integer for the id of a row: the id itself if it is one, also as text, else a digest; None for a row
    without an id."""
    found = id_in(row)
    if isinstance(found, str) and _INTEGER.fullmatch(found):
        return int(found)
    if isinstance(found, int) and -(2**63) <= found < 2**63:
        return int(found)
    return None if found is None else _digest(json.dumps(found))


def _question(row: Mapping[str, object]) -> Sequence[int]:
    """Return a code for each thing that a row may say of its question."""
    return [_NOT_SAID if (said := row.get(name)) is None else _code(said) for name in _SAID]


def _code(said: object) -> int:
    if not isinstance(said, str):  # first, as for all but few it is one
        said = json.dumps(said) if isinstance(said, int | float | list) else ""
    return hash(said) & _MAX_CODE or 1 if said and said != _HASH_OF_NONE else _NOT_SAID


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(errors="replace"), digest_size=8).digest(), signed=True)
