"""A field of samples that tells which of them belong together."""

import json
from collections.abc import Iterator, Mapping
from typing import Final

KNOWN_CLUSTERS: Final = "cluster"
"""The field of a row in which a harness says what cluster it belongs to."""

MAX_OFFERED: Final = 10
"""How many fields an error names."""

_NESTED: Final = ("doc", "metadata")
_MAX_NAME_LENGTH: Final = 64


class ClusterField:
    """Finds the cluster of a sample: by the field that a caller names, or else by the one in which the harness says it."""

    def __init__(self, name: str) -> None:
        self.is_asked_for = bool(name)
        self.name = name or KNOWN_CLUSTERS
        self._path = self.name.split(".") if "." in self.name else ()

    def code(self, row: Mapping[str, object]) -> int:
        """Return a number for the cluster of a row, which is the same for equal values within a process; 0 if it has none."""
        value = self._value(row)
        if value is None:
            return 0
        if isinstance(value, dict | list):
            value = json.dumps(value, sort_keys=True)
        return hash((value,)) or 1

    def _value(self, row: Mapping[str, object]) -> object:
        value = row.get(self.name)
        if value is not None or not self.is_asked_for:
            return value
        for name in _NESTED:
            if isinstance(table := row.get(name), dict) and (value := table.get(self.name)) is not None:
                return value
        return self._nested_value(row) if self._path else None

    def _nested_value(self, row: Mapping[str, object]) -> object:
        for start in (row, *(row.get(name) for name in _NESTED)):
            value: object = start
            for part in self._path:
                value = value.get(part) if isinstance(value, dict) else None
            if value is not None:
                return value
        return None


HARNESS_CLUSTERS: Final = ClusterField("")
"""The clusters that the harness knows."""


def offered_fields(row: Mapping[str, object]) -> Iterator[str]:
    """Yield the names of fields of a row that `ClusterField` takes and that hold one value, those of its document first."""
    for place in (*_NESTED, ""):
        table = row.get(place) if place else row
        for name, value in table.items() if isinstance(table, dict) else ():
            if isinstance(value, str | int) and 0 < len(name) <= _MAX_NAME_LENGTH:
                yield f"{place}.{name}" if place else name
