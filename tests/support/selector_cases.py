"""Label selectors at random, each with what it means: worked out from its parts, not by parsing it."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hypothesis import strategies as st


class Part(NamedTuple):
    """One requirement: `operator` is `=`, `==`, `!=`, `in`, `notin`, `exists` or `lacks`."""

    key: str
    operator: str
    values: Sequence[str]

    def holds(self, labels: Mapping[str, str]) -> bool:
        match self.operator:
            case "=" | "==" | "in":
                return labels.get(self.key) in self.values
            case "!=" | "notin":
                return labels.get(self.key) not in self.values
            case "exists":
                return self.key in labels
        return self.key not in labels


class Selector(NamedTuple):
    parts: Sequence[Part]
    text: str

    def holds(self, labels: Mapping[str, str]) -> bool:
        return all(part.holds(labels) for part in self.parts)


@st.composite
def selectors(draw: st.DrawFn, keys: st.SearchStrategy[str], values: st.SearchStrategy[str], max_parts: int = 4) -> Selector:
    parts = [draw(_parts(keys, values)) for _ in range(draw(st.integers(0, max_parts)))]
    return Selector(parts, ",".join(draw(_texts(part)) for part in parts))


@st.composite
def _parts(draw: st.DrawFn, keys: st.SearchStrategy[str], values: st.SearchStrategy[str]) -> Part:
    operator = draw(st.sampled_from(["=", "==", "!=", "in", "notin", "exists", "lacks"]))
    counts = {"in": (1, 4), "notin": (1, 4), "exists": (0, 0), "lacks": (0, 0)}
    least, most = counts.get(operator, (1, 1))
    return Part(draw(keys), operator, draw(st.lists(values, min_size=least, max_size=most)))


@st.composite
def _texts(draw: st.DrawFn, part: Part) -> str:
    """Write a requirement in one of the ways that it can be written."""
    spaces = st.text(" \t\r\n", max_size=2)

    def value(text: str) -> str:
        can_be_bare = re.fullmatch(r"[A-Za-z0-9_./-]*", text)
        bare = can_be_bare and draw(st.booleans())
        return text if bare else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    tokens = [part.key]
    if part.operator == "lacks":
        tokens = ["!", part.key]
    elif part.operator in ("in", "notin"):
        listed = [token for text in part.values for token in (",", value(text))][1:]
        tokens += [" ", part.operator, "(", *listed, ")"]
    elif part.operator != "exists":
        tokens += [part.operator, value(part.values[0])]
    return "".join(draw(spaces) + token for token in tokens) + draw(spaces)
