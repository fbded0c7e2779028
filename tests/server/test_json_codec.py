"""Requests as JSON: what is read by a shorter way is read as json_format reads it. Events as JSON."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from evalrpc.errors import InvalidRequestError, RequestTooLargeError
from evalrpc.server.transports.http.codec import MAX_JSON_VALUES, EventJson, JsonCodec, decode, require_few_values
from evalrpc.server.transports.http.errors import error_body
from evalrpc.v1 import evaluation_service_pb2
from evalrpc.v1.jobs_pb2 import JobEvent

_REQUESTS = [method.input_type for method in evaluation_service_pb2.DESCRIPTOR.services_by_name["EvaluationService"].methods]

_VALUES = st.one_of(
    st.text(max_size=5),
    st.text(st.characters(categories=("Cs",)), max_size=2),  # halves of pairs, which are no text
    st.sampled_from([None, True, 7, [], ["a"], {}, {"a": "b"}, [["jobId", "a"]]]),
)


@given(st.data())
def test_every_object_is_read_as_json_format_reads_it(data: st.DataObject) -> None:
    descriptor = data.draw(st.sampled_from(_REQUESTS))
    names = [name for field in descriptor.fields for name in (field.name, field.json_name)]
    pairs = data.draw(st.lists(st.tuples(st.sampled_from([*names, "other"]), _VALUES), max_size=3))
    text = "{{{}}}".format(", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in pairs))

    assert _decoded(text.encode(), descriptor) == _decoded_by_json_format(text, descriptor)


@pytest.mark.parametrize(
    "text", ['{"jobId": "a"} {}', '{"jobId": "a",}', '{"jobId": "a", "jobId": "b"}', '{"jobId": "\n"}', "{"]
)
def test_what_is_no_such_object_is_refused(text: str) -> None:
    descriptor = next(each for each in _REQUESTS if each.name == "GetJobRequest")

    assert _decoded(text.encode(), descriptor) is _decoded_by_json_format(text, descriptor) is None


@pytest.mark.parametrize(
    ("request_name", "text", "field"),
    [
        ("GetJobRequest", '{"jobId": "\\ud800"}', "jobId"),
        ("GetJobRequest", '{"\\ud800": 1}', ""),
        ("SubmitJobRequest", '{"timeout": "\\udc00s"}', "timeout"),
        ("SubmitJobRequest", '{"cache": "\\ud800"}', ""),
        ("SubmitJobRequest", '{"request": {"modelArgs": {"a": "\\ud800"}}}', "request.modelArgs"),
    ],
)
def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(request_name: str, text: str, field: str) -> None:
    descriptor = next(each for each in _REQUESTS if each.name == request_name)

    with pytest.raises(InvalidRequestError, match="half of a surrogate pair") as caught:
        decode(text.encode(), descriptor)

    assert [violation.field for violation in caught.value.violations] == ([field] if field else [])
    assert json.loads(error_body(caught.value))["code"] == "invalid_argument"


@pytest.mark.parametrize("value", ["[],", "{},", '"",', "0,"])
def test_json_of_very_many_values_is_refused_unread(value: str) -> None:
    text = f'{{"candidateJobIds": [{value * MAX_JSON_VALUES}""]}}'.encode()

    with pytest.raises(RequestTooLargeError, match=f"more than {MAX_JSON_VALUES} values"):
        require_few_values(text)


@pytest.mark.parametrize(
    ("call", "text", "field"),
    [
        ("ListJobs", '{"pageSize": "x"}', "pageSize"),
        ("ListJobs", '{"filter": {"statuses": ["x"]}}', "filter.statuses[0]"),
        ("ListJobs", '{"filter": {"createdAfter": "x"}}', "filter.createdAfter"),
        ("SubmitJob", '{"request": {"limit": "x"}}', "request.limit"),
        ("SubmitJob", '{"request": {"numGpus": "x"}}', "request.numGpus"),
        ("SubmitJob", '{"request": {"tasks": [1]}}', "request.tasks"),
        ("CompareJobs", '{"alpha": NaN}', "alpha"),
        ("CompareJobs", '{"higherIsBetter": "x"}', "higherIsBetter"),
        ("CompareJobs", '{"metricThresholds": [{"tolerance": 1}, {"tolerance": "x"}]}', "metricThresholds[1].tolerance"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(call: str, text: str, field: str) -> None:
    descriptor = next(each for each in _REQUESTS if each.name == f"{call}Request")
    with pytest.raises(InvalidRequestError) as caught:
        decode(text.encode(), descriptor)
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ('{"request": {"tasks": "t"}}', "request.tasks: must be a list, in []"),
        ('{"labels": {"a": "b"}, "request": {"secrets": "a"}}', "request.secrets: must be a list, in []"),
        ('{"request": {"model": 5}}', "request.model: must be text"),
        ('{"request": {"numGpus": true}}', "request.numGpus: must be a whole number"),
        *(
            (f'{{"request": {{"numFewshot": {value}}}}}', "request.numFewshot: must be a whole number")
            for value in ('"x"', '"1.5"', "[]", "{}")
        ),
        ('{"request": {"gpuMode": []}}', "request.gpuMode: must be the name of a value"),
        *((f'{{"timeout": {value}}}', "timeout: must be a duration such as 90s") for value in ('"1h"', "90", "{}", '"xs"')),
        ('{"request": {"limit": "all"}}', "request.limit: must be a number"),
        ('{"request": {"modelArgs": "a=1"}}', "request.modelArgs: must be an object, in {}"),
        ('{"request": 5}', "request: must be an object, in {}"),
        ('{"request": "{\\"model\\": \\"m\\"}"}', "request: must be an object, in {}"),
        ('{"request": {"servedModel": "m"}}', "request.servedModel: must be an object, in {}"),
        ('{"cache": "ALLOW"}', "cache: there is no 'ALLOW'; there are: CACHE_MODE_UNSPECIFIED, CACHE_MODE_ALLOW"),
    ],
)
def test_what_is_right_in_its_place_is_said(text: str, refusal: str) -> None:
    descriptor = next(each for each in _REQUESTS if each.name == "SubmitJobRequest")
    with pytest.raises(InvalidRequestError) as caught:
        decode(text.encode(), descriptor)
    assert caught.value.message == refusal


def test_a_list_at_the_top_is_named_once() -> None:
    descriptor = next(each for each in _REQUESTS if each.name == "CompareJobsRequest")
    with pytest.raises(InvalidRequestError, match=r"^candidateJobIds: must be a list, in \[\]$"):
        decode(b'{"candidateJobIds": "a"}', descriptor)


def _decoded(text: bytes, descriptor: Descriptor) -> Message | None:
    try:
        message: Message = GetMessageClass(descriptor).FromString(decode(text, descriptor))
    except InvalidRequestError:
        return None
    return message


def _decoded_by_json_format(text: str, descriptor: Descriptor) -> Message | None:
    message: Message = GetMessageClass(descriptor)()
    try:
        json_format.Parse(text, message)
    except (json_format.ParseError, ValueError):
        return None
    return message


def test_streams_that_begin_together_hold_up_nothing_else() -> None:
    async def most_at_once() -> int:
        """Return how many events of as many streams are converted before anything else goes on."""
        events = EventJson(JsonCodec(pool))
        messages = [JobEvent(revision=number).SerializeToString() for number in range(1, 101)]
        streams = [asyncio.create_task(events.encode_in_turn(message, JobEvent.DESCRIPTOR)) for message in messages]
        counts = [0]
        while counts[-1] < len(streams):
            await asyncio.sleep(0)
            counts.append(sum(stream.done() for stream in streams))
        return max(after - before for before, after in pairwise(counts))

    with ThreadPoolExecutor(1) as pool:
        assert asyncio.run(most_at_once()) <= 2
