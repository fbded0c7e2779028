"""Which rows a filter takes."""

from collections.abc import Mapping
from typing import Any

import pytest

from evalrpc.reading.sample_filters import SampleMatcher, sample_id
from evalrpc.v1.samples_pb2 import SampleFilter

LM_EVAL = {"doc_id": 4, "filter": "strict", "exact_match": 1.0, "resps": [["Straße 7"]]}
INSPECT = {"doc_id": "q-1", "metrics": {"accuracy,match": 0.5}, "messages": [{"role": "user", "content": "Which?"}]}
PLAIN = {"id": 9, "acc": True, "score": "0.25", "bad": float("nan")}


def takes(row: Mapping[str, object], **fields: Any) -> bool:
    return SampleMatcher(SampleFilter(**fields)).matches(row)


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        (LM_EVAL, {"text": "STRASSE"}),
        (LM_EVAL, {"text": "4"}),
        (INSPECT, {"text": "which?"}),
        (LM_EVAL, {"metric": "exact_match", "min_value": 1}),
        (LM_EVAL, {"metric": "exact_match,strict", "max_value": 1}),
        (INSPECT, {"metric": "accuracy", "min_value": 0.5, "max_value": 0.5}),
        (INSPECT, {"metric": "accuracy,match"}),
        (PLAIN, {"metric": "acc", "min_value": 1}),
        (PLAIN, {"metric": "score", "max_value": 0.3}),
        ({"acc": "True"}, {"metric": "acc", "min_value": 1}),
        ({"metrics": {"acc,none": "np.False_"}}, {"metric": "acc", "max_value": 0}),
        (PLAIN, {"sample_ids": ["8", "9"]}),
        (INSPECT, {"sample_ids": ["q-1"], "text": "user"}),
        (LM_EVAL, {}),
    ],
)
def test_taken(row: Mapping[str, object], fields: Mapping[str, Any]) -> None:
    assert takes(row, **fields)


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        (LM_EVAL, {"text": "exact_match"}),  # the name of a field
        (LM_EVAL, {"metric": "exact_match,loose"}),
        (LM_EVAL, {"metric": "acc"}),
        (LM_EVAL, {"metric": "exact_match", "max_value": 0}),
        (PLAIN, {"metric": "bad"}),
        ({"acc": "False"}, {"metric": "acc", "min_value": 1}),
        *(({"acc": text}, {"metric": "acc"}) for text in ("nan", "N/A", "true enough", "")),
        ({"acc": 10**400, "f1": -(10**400), "text": "9" * 400}, {"metric": "acc"}),
        ({"f1,none": -(10**400)}, {"metric": "f1"}),
        (PLAIN, {"sample_ids": ["1"]}),
        (INSPECT, {"metric": "accuracy", "text": "no such text"}),
    ],
)
def test_left_out(row: Mapping[str, object], fields: Mapping[str, Any]) -> None:
    assert not takes(row, **fields)


def test_a_text_is_found_at_any_depth() -> None:
    deep: Any = "needle"
    for _ in range(5000):
        deep = [None, {"a": deep}]
    assert takes({"resps": deep}, text="Needle")
    assert not takes({"resps": deep}, text="pin")


def test_an_id_is_text() -> None:
    assert [sample_id(row) for row in (LM_EVAL, INSPECT, PLAIN, {})] == ["4", "q-1", "9", ""]
