"""The fields of a message are counted as a decoder would find them, and whatever the bytes are, the count ends."""

from itertools import islice

from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st

from evalrpc.protobuf.field_count import STEP, counted_fields
from evalrpc.v1.jobs_pb2 import SubmitJobRequest

DESCRIPTOR = SubmitJobRequest.DESCRIPTOR


def count_of(serialized: bytes) -> int:
    *_, last = counted_fields(serialized, DESCRIPTOR)
    return last


def test_all_fields_count_also_those_of_messages_within() -> None:
    call = SubmitJobRequest(request_id="a" * 300, labels={"a": "b"}, priority=-1)
    call.request.tasks.extend(["t"] * 7)
    call.request.limit = 0.5
    call.request.model_args.update({"list": [None, 1, "x"], "more": {"deep": True}})
    call.timeout.seconds = 2**40
    of_labels, of_timeout, of_request = 3, 2, 1 + 7 + 1
    of_list = 3 + 1 + 3 * 2  # entry, key and value; the list; each value with what it is
    of_object = 3 + 1 + 4
    assert count_of(call.SerializeToString()) == 2 + of_labels + of_timeout + of_request + 1 + of_list + of_object


def test_it_is_told_step_by_step_so_that_nobody_has_to_wait_for_the_end() -> None:
    call = SubmitJobRequest()
    call.request.tasks.extend([""] * 10 * STEP)
    assert list(islice(counted_fields(call.SerializeToString(), DESCRIPTOR), 3)) == [STEP, 2 * STEP, 3 * STEP]


@given(st.binary(max_size=300))
def test_any_bytes_end(data: bytes) -> None:
    assert 0 <= count_of(data) <= len(data)


@given(st.binary(max_size=100))
def test_no_field_of_a_message_is_overlooked(data: bytes) -> None:
    try:
        call = SubmitJobRequest.FromString(data)
    except Exception:  # noqa: BLE001 - whatever it is, it is no message
        return
    assert count_of(data) >= len(call.ListFields()) + len(UnknownFieldSet(call))  # type: ignore[arg-type]


def test_a_number_without_end_is_none() -> None:
    assert count_of(b"\xff" * 1_000_000) == 1
