"""Which samples a caller wants, row by row. Pure."""

from collections.abc import Iterable, Iterator, Mapping

from evalrpc.results.metrics import number, sample_value
from evalrpc.v1.samples_pb2 import SampleFilter

Row = Mapping[str, object]


class SampleMatcher:
    """Says of each row whether a filter takes it. The filter is valid."""

    def __init__(self, sample_filter: SampleFilter) -> None:
        self._text = sample_filter.text.casefold()
        self._metric = sample_filter.metric
        self._least = sample_filter.min_value if sample_filter.HasField("min_value") else float("-inf")
        self._most = sample_filter.max_value if sample_filter.HasField("max_value") else float("inf")
        self._ids = frozenset(sample_filter.sample_ids)

    def matches(self, row: Row) -> bool:
        """Return whether the filter takes a row."""
        if self._ids and sample_id(row) not in self._ids:
            return False
        if self._metric and not self._has_wanted_value(row):
            return False
        return not self._text or any(self._text in text.casefold() for text in texts_in(row))

    def _has_wanted_value(self, row: Row) -> bool:
        value = metric_value(row, self._metric)
        return value is not None and self._least <= value <= self._most


def sample_id(row: Row) -> str:
    """Return the id of a row as text; empty if it has none."""
    found = id_in(row)
    return "" if found is None else str(found)


def id_in(row: Row) -> str | int | float | None:
    """Return the id of a row: its `doc_id`, or else its `id`; None if it has none."""
    for name in ("doc_id", "id"):
        value = row.get(name)
        if isinstance(value, str | int | float):
            return value
    return None


def metric_value(row: Row, metric: str) -> float | None:
    """Return a row's value of METRIC, or of METRIC,FILTER; None if it has none. Without a filter, that of any counts."""
    name, _, wanted_filter = metric.partition(",")
    if wanted_filter and row.get("filter", wanted_filter) != wanted_filter:
        return None
    nested = row.get("metrics")
    tables = (row, nested) if isinstance(nested, dict) else (row,)
    exact = (metric, name) if wanted_filter else (metric,)
    values = (_value(table.get(each)) for each in exact for table in tables)
    found = next((value for value in values if value is not None), None)
    return found if found is not None or wanted_filter else _any_filter(tables, f"{name},")


def texts_in(value: object) -> Iterator[str]:
    """Yield all texts and numbers in a value, however deep; not the names of fields."""
    pending = [iter((value,))]  # no recursion: a run may nest as deep as the parser goes
    while pending:
        item = next(pending[-1], None)
        if item is None:
            pending.pop()
        elif isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            pending.append(_present(item.values()))
        elif isinstance(item, list | tuple):
            pending.append(_present(item))
        elif isinstance(item, int | float):
            yield str(item)


def _present(values: Iterable[object]) -> Iterator[object]:
    return (value for value in values if value is not None)


def _any_filter(tables: Iterable[Row], prefix: str) -> float | None:
    for table in tables:
        for name, value in table.items():
            if name.startswith(prefix) and (found := _value(value)) is not None:
                return found
    return None


def _value(value: object) -> float | None:
    """Return the value of a sample; None for an integer that no number with a point can hold, too."""
    found = sample_value(value)
    return None if found is None else number(+found)  # truth is no number
