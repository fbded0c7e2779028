"""Messages assembled from bytes equal those that protobuf would build."""

import os
from contextlib import suppress
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from evalrpc.protobuf import wire_format
from evalrpc.v1.files_pb2 import ReadArtifactResponse
from evalrpc.v1.jobs_pb2 import JobAttempt, JobEvent, JobInfo, SubmitJobRequest

NUMBER = ReadArtifactResponse.DATA_FIELD_NUMBER


@given(st.text(max_size=300), st.integers(0, 2**40))
def test_a_field_that_is_appended_is_part_of_the_message(message: str, revision: int) -> None:
    job = JobInfo(job_id="a", wait_reason=message)
    joined = JobEvent(revision=revision).SerializeToString() + wire_format.message_field(
        JobEvent.JOB_FIELD_NUMBER, job.SerializeToString()
    )
    assert JobEvent.FromString(joined) == JobEvent(revision=revision, job=job)


@given(st.builds(JobInfo, job_id=st.text(), cached_from=st.text(), wait_reason=st.text(), revision=st.integers(0, 2**40)))
def test_a_message_without_the_tag_of_a_field_does_not_have_the_field(job: JobInfo) -> None:
    has_tag = wire_format.field_tag(JobInfo.CACHED_FROM_FIELD_NUMBER) in job.SerializeToString()
    assert has_tag or not job.cached_from


def test_most_messages_without_a_field_are_seen_to_lack_it() -> None:
    job = JobInfo(job_id="0b54e7a6-3a51-4f2c-9d5e-6f6c4f1a2b3c", wait_reason="needs 1 GPU, 0 free; 1 job before this one")
    assert wire_format.field_tag(JobInfo.CACHED_FROM_FIELD_NUMBER) not in job.SerializeToString()


@given(st.binary(max_size=400), st.integers(0, 400), st.integers(1, 400))
def test_a_chunk_has_the_bytes_of_the_file_also_where_that_ends_before_the_chunk(data: bytes, offset: int, size: int) -> None:
    rest = ReadArtifactResponse(offset=offset, size_bytes=len(data))
    descriptor = os.memfd_create("file")
    try:
        os.write(descriptor, data)
        message, read_bytes = wire_format.file_chunk(NUMBER, rest.SerializeToString(), descriptor, offset, size)
    finally:
        os.close(descriptor)
    expected = data[offset : offset + size]
    assert read_bytes == len(expected)
    assert ReadArtifactResponse.FromString(message) == ReadArtifactResponse(data=expected, offset=offset, size_bytes=len(data))


def test_reading_at_once_or_not_at_all_gives_what_the_kernel_has_at_hand(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"at hand")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        message, read_bytes = wire_format.file_chunk(NUMBER, b"", descriptor, 0, 7, os.RWF_NOWAIT)
    except OSError:
        return  # a file system without RWF_NOWAIT
    finally:
        os.close(descriptor)
    assert (ReadArtifactResponse.FromString(message).data, read_bytes) == (b"at hand", 7)


@given(
    st.builds(
        SubmitJobRequest,
        request_id=st.text(),
        priority=st.integers(-(2**31), 2**31 - 1),
        labels=st.dictionaries(st.text(), st.text(), max_size=3),
    ),
    st.text(),
)
def test_a_text_is_found_without_decoding_and_the_last_one_counts(call: SubmitJobRequest, later: str) -> None:
    number = SubmitJobRequest.REQUEST_ID_FIELD_NUMBER
    serialized = call.SerializeToString()
    assert wire_format.text_field(serialized, number) == call.request_id
    twice = serialized + wire_format.message_field(number, later.encode())
    assert wire_format.text_field(twice, number) == SubmitJobRequest.FromString(twice).request_id == later


@given(
    st.builds(JobInfo, job_id=st.text(), revision=st.integers(0, 2**40), attempts=st.lists(st.builds(JobAttempt), max_size=3)),
    st.integers(1, 2**62),
)
def test_a_number_is_found_without_decoding_and_the_last_one_counts(job: JobInfo, later: int) -> None:
    number = JobInfo.REVISION_FIELD_NUMBER
    serialized = job.SerializeToString()
    assert wire_format.number_field(serialized, number) == job.revision
    assert wire_format.number_field(serialized + JobInfo(revision=later).SerializeToString(), number) == later


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_have_no_number_or_any(data: bytes) -> None:
    with suppress(ValueError, OverflowError):
        assert isinstance(wire_format.number_field(data, 1), int)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_have_no_text_or_any(data: bytes) -> None:
    assert isinstance(wire_format.text_field(data, 1), str)
