"""What agents get: messages as plain JSON, bounded, images as images, and errors with their text."""

import base64
import binascii
import json
import re
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message
from mcp.server.mcpserver import Image
from mcp.server.mcpserver.exceptions import ToolError

from evalrpc.errors import EvalrpcError, FieldsError
from evalrpc.protobuf.copies import without
from evalrpc.v1.jobs_pb2 import JobInfo
from evalrpc.v1.samples_pb2 import ReadSampleMediaResponse

MAX_METRICS: Final = 100
MAX_IMAGES: Final = 8
MAX_IMAGE_BYTES: Final = 1_500_000
"""The size of an image that an agent gets."""
_MAX_IMAGE_CHARACTERS: Final = MAX_IMAGE_BYTES * 4 // 3
_IMAGE_TYPES: Final = {f"image/{kind}": kind for kind in ("png", "jpeg", "gif", "webp")}
_IMAGE_URL: Final = re.compile(r"data:image/(png|jpe?g|gif|webp);base64,([A-Za-z0-9+/=]+)")
_MAX_TEXT_CHARACTERS: Final = 4000

_P = ParamSpec("_P")
_T = TypeVar("_T")


def with_texts(tool: Callable[_P, Awaitable[_T]]) -> Callable[_P, Awaitable[_T]]:
    """Return the tool such that agents get the text of an error: that of any other exception would be kept from them."""

    @wraps(tool)
    async def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return await tool(*args, **kwargs)
        except FieldsError as error:
            bad = "; ".join(f"{each.field}: {each.description}" for each in error.violations)
            raise ToolError(f"{error.reason}: {bad or error.message}") from error
        except EvalrpcError as error:
            raise ToolError(f"{error.reason}: {error.message}") from error
        except (ValueError, TypeError, TimeoutError) as error:
            raise ToolError(str(error) or type(error).__name__) from error

    return call


def plain(message: Message) -> dict[str, Any]:
    """Return a message as JSON has it, with the names of the schema."""
    fields: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return fields


def plain_job(job: JobInfo) -> dict[str, Any]:
    """Return a job, with the first of its metrics as numbers by name."""
    metrics: list[dict[str, Any]] = []
    for model, result in sorted(job.results.items()):
        metrics += [{"model": model, **plain(metric)} for metric in result.metrics[: MAX_METRICS - len(metrics)]]
    count = sum(result.metric_count for result in job.results.values())
    answer = plain(without(job, "results"))
    if metrics:
        answer |= {"metrics": metrics, "metric_count": count}
    return answer


def samples_content(rows: list[dict[str, Any]]) -> list[Any]:
    """Return rows of samples as text, each image in them as an image behind it."""
    images: list[Image] = []
    texts = [_without_images(row, images) for row in rows]
    return [json.dumps(texts, ensure_ascii=False), *images]


def media_content(media: list[ReadSampleMediaResponse]) -> list[Any]:
    """Return what there is of media as text, each image that an agent can look at behind it."""
    images: list[Image] = []
    described = []
    for medium in media:
        shown = plain(medium)
        shown.pop("data", None)
        kind = _IMAGE_TYPES.get(medium.media_type)
        if kind and not medium.problem and len(images) < MAX_IMAGES:
            images.append(Image(data=medium.data, format=kind))
            shown["image"] = len(images)
        described.append(shown)
    return [json.dumps(described, ensure_ascii=False), *images]


def _without_images(value: Any, images: list[Image]) -> Any:
    """Return a value with long texts cut, and images taken out of it."""
    if isinstance(value, dict):
        return {name: _without_images(item, images) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_images(item, images) for item in value]
    if not isinstance(value, str):
        return value
    text = _IMAGE_URL.sub(lambda found: _take_image(found, images), value)
    return text if len(text) <= _MAX_TEXT_CHARACTERS else f"{text[:_MAX_TEXT_CHARACTERS]}… ({len(text)} characters)"


def _take_image(found: re.Match[str], images: list[Image]) -> str:
    if len(images) == MAX_IMAGES or len(found[2]) > _MAX_IMAGE_CHARACTERS:
        return "[an image that is left out]"
    try:
        data = base64.b64decode(found[2], validate=True)
    except (binascii.Error, ValueError):
        return "[an image that can't be read]"
    images.append(Image(data=data, format=found[1]))
    return f"[image {len(images)}]"
