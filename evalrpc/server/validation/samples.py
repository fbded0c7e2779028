"""What is wrong with calls about samples."""

import math
from typing import Final

from evalrpc.errors import FieldViolation
from evalrpc.server.validation.fields import Violations, offsets
from evalrpc.v1.samples_pb2 import ListSamplesRequest, ReadSampleMediaRequest, SampleFilter

MAX_TEXT_LENGTH: Final = 1024
"""How many characters a text to look for may have, a metric, or the id of a sample."""
MAX_SAMPLE_IDS: Final = 1000


def sample_listing(call: ListSamplesRequest) -> Violations:
    """Yield what is wrong with a ListSamplesRequest, besides its `job_id`."""
    yield from _sample_filter(call.filter)
    yield from offsets(page_size=call.page_size)


def _sample_filter(wanted: SampleFilter) -> Violations:
    """Yield what is wrong with the filter of a ListSamplesRequest."""
    yield from _text("filter.text", wanted.text)
    yield from _text("filter.metric", wanted.metric)
    for name in ("min_value", "max_value"):
        if wanted.HasField(name) and math.isnan(getattr(wanted, name)):
            yield FieldViolation(f"filter.{name}", "must be a number, and is NaN")
    if wanted.HasField("min_value") and wanted.HasField("max_value") and wanted.min_value > wanted.max_value:
        yield FieldViolation("filter.min_value", f"must be at most `max_value`, and is {wanted.min_value:.15g}")
    if not wanted.metric and (wanted.HasField("min_value") or wanted.HasField("max_value")):
        yield FieldViolation(
            "filter.metric", "is required with `min_value` or `max_value`: the metric whose values these bound"
        )
    if len(wanted.sample_ids) > MAX_SAMPLE_IDS:
        yield FieldViolation("filter.sample_ids", f"has {len(wanted.sample_ids)} ids; at most {MAX_SAMPLE_IDS} are allowed")
        return
    for index, sample_id in enumerate(wanted.sample_ids):
        yield from _text(f"filter.sample_ids[{index}]", sample_id)


def sample_media(call: ReadSampleMediaRequest) -> Violations:
    """Yield what is wrong with a ReadSampleMediaRequest, besides its `job_id`."""
    yield from offsets(start_index=call.start_index, max_media=call.max_media)
    yield from _text("sample_id", call.sample_id)
    if bool(call.sample_id) == bool(call.sample_token):
        problem = "and `sample_token` exclude each other" if call.sample_id else "is required, or else a `sample_token`"
        yield FieldViolation("sample_id", problem)


def _text(field: str, text: str) -> Violations:
    """What is looked for may have any characters: so may a sample."""
    if len(text) > MAX_TEXT_LENGTH:
        yield FieldViolation(field, f"has {len(text)} characters; at most {MAX_TEXT_LENGTH} are allowed")
