"""Any untrusted number becomes a value that a message can hold and protobuf can write as JSON."""

import json
import math

import pytest
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from evalrpc.protobuf import bounds
from evalrpc.protobuf.structs import MAX_SAMPLE_DEPTH, sample_struct
from evalrpc.v1.jobs_pb2 import JobError
from evalrpc.v1.results_pb2 import Metric

NUMBERS = st.integers(-(10**40), 10**40) | st.floats() | st.sampled_from((10**400, -(10**400), 2**63 - 1, 2**63, 1e308))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(NUMBERS)
def test_a_count_is_a_whole_number_that_a_field_holds_or_unknown(number: float) -> None:
    count = bounds.count(number)
    assert Metric(sample_count=count).sample_count == (count or 0)
    assert count in (None, number)
    assert (count is not None) == (0 <= number < 2**63 and number == math.floor(number))


@pytest.mark.parametrize("other", [True, "1", None, [1]])
def test_what_is_no_number_is_no_count(other: object) -> None:
    assert bounds.count(other) is None


@given(NUMBERS)
def test_every_span_of_time_can_be_written_as_json(number: float) -> None:
    spans = [bounds.duration_of_seconds(number)]
    if isinstance(number, int):
        spans.append(bounds.duration_of_ns(number))
    for span in spans:
        assert span is None or (json_format.MessageToJson(span) and span.ToNanoseconds() >= 0)


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        (Duration(), True),
        (Duration(seconds=bounds.MAX_SECONDS), True),
        (Duration(seconds=bounds.MAX_SECONDS + 1), False),
        (Duration(seconds=-1), False),
        (Duration(nanos=-1), False),
        (Duration(nanos=10**9), False),
    ],
)
def test_a_span_that_came_as_a_message_is_judged_the_same_way(span: Duration, expected: bool) -> None:
    assert bounds.is_span(span) == expected


@given(st.integers(-(10**30), 10**30))
def test_every_time_can_be_written_as_json_and_shown_in_any_zone(nanoseconds: int) -> None:
    time = bounds.timestamp_of_ns(nanoseconds)
    assert time is None or (json_format.MessageToJson(time) and time.ToNanoseconds() == nanoseconds)
    assert (time is not None) == (0 <= nanoseconds // 10**9 < 253_370_764_800)


@given(st.none() | st.integers())
def test_an_exit_code_is_one_that_a_field_holds_or_unknown(number: int | None) -> None:
    code = bounds.int32(number)
    assert JobError(exit_code=code).exit_code == (code or 0)
    assert code in (None, number)


@pytest.mark.parametrize("digits", [1, 400, 5000, 100_000])
def test_an_integer_of_more_digits_than_python_reads_is_text(digits: int) -> None:
    value = json.loads("9" * digits, parse_int=bounds.json_integer)
    assert value == (10**digits - 1 if digits < 1000 else "9" * digits)


@given(st.dictionaries(st.text(st.characters(codec=None)), JSON_VALUES, max_size=4))
def test_every_sample_can_be_sent_and_written_as_json(values: dict[str, object]) -> None:
    row = sample_struct(values)
    assert Struct.FromString(row.SerializeToString()) == row
    assert json_format.MessageToJson(row)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((2**53, 2**53), (2**53 + 1, "9007199254740993"), (-(2**53) - 1, "-9007199254740993"), (10**20, 1e20)),
        *((10**400, "1" + "0" * 400), (0.1, 0.1), (float("-inf"), "-Infinity"), (True, True)),
    ],
)
def test_no_number_of_a_sample_is_another_one(value: float, expected: float | str) -> None:
    assert sample_struct({"x": value})["x"] == expected


@pytest.mark.parametrize("depth", [1, MAX_SAMPLE_DEPTH - 1, MAX_SAMPLE_DEPTH, 900])
def test_what_is_nested_too_deep_in_a_sample_becomes_text(depth: int) -> None:
    value: object = 1
    for _ in range(depth):
        value = [value]
    row = Struct.FromString(sample_struct({"x": value}).SerializeToString())
    assert ('"[' in json_format.MessageToJson(row)) == (depth >= MAX_SAMPLE_DEPTH)
