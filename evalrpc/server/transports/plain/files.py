"""Files of jobs as they are, for `curl -O` and pages: `GET /v1/jobs/ID/artifacts/NAME`, `GET /v1/jobs/ID/log`, and the images,
sounds and videos of a sample, `GET /v1/jobs/ID/media/INDEX?sample_id=`.

A run may leave anything, so nothing here is ever shown as a page: browsers save it, whatever it claims to be.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

from google.protobuf.message import Message

from evalrpc.errors import InvalidRequestError, SamplesNotFoundError, UnavailableError
from evalrpc.protobuf.file_names import medium_name
from evalrpc.server.transports.http.application import Endpoint
from evalrpc.server.transports.http.errors import refuse_method
from evalrpc.server.transports.http.methods import HttpMethod
from evalrpc.server.transports.http.request import INERT, HttpRequest
from evalrpc.server.transports.plain.parameters import fill
from evalrpc.v1.files_pb2 import ReadArtifactRequest, ReadArtifactResponse, ReadLogRequest, ReadLogResponse
from evalrpc.v1.samples_pb2 import ReadSampleMediaRequest, ReadSampleMediaResponse

ANY_TYPE: Final = b"application/octet-stream"

_PATH: Final = re.compile(rb"/v1/jobs/([0-9A-Fa-f-]{36})/(?:log|artifacts/(?P<name>.+)|media/(?P<index>[0-9]{1,9}))")
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_RANGE: Final = re.compile(r"bytes=([0-9]{1,15})-([0-9]{1,15})?")
_LOG_TYPE: Final = b"text/plain; charset=utf-8"


class FilesEndpoint:
    """Answers at these paths."""

    def __init__(self, methods: Mapping[str, HttpMethod]) -> None:
        self._read_artifact = methods["ReadArtifact"]
        self._read_log = methods["ReadLog"]
        self._read_media = methods["ReadSampleMedia"]

    def find(self, request: HttpRequest) -> Endpoint | None:
        """Return what answers a request, if it is for a file."""
        match = _PATH.fullmatch(request.raw_path)
        if match is None:
            return None
        if request.method != "GET":
            return lambda request: refuse_method(request, "GET")
        job_id = match[1].decode()
        if match["index"] is not None:
            return lambda request: self._send_medium(request, job_id, int(match["index"]))
        if match["name"] is None:
            return lambda request: self._send_log(request, job_id)
        return lambda request: self._send_artifact(request, job_id, _name(match["name"]))

    async def _send_artifact(self, request: HttpRequest, job_id: str, name: str) -> None:
        message = ReadArtifactRequest()
        fill(request.parameters, message, but=("job_id", "name"))
        message.job_id, message.name = job_id, name
        is_part = message.offset or message.limit  # of which a header may ask for a part, but need not be given it
        wanted = None if is_part else _range_of(request.headers.get("range", ""))
        if wanted:
            message.offset, message.limit = wanted
        limit = message.limit

        async def start(first: ReadArtifactResponse) -> int:
            if wanted and first.offset >= first.size_bytes:  # a client that has all of it asks for what comes after
                total = (b"content-range", b"bytes */%d" % first.size_bytes)
                await request.start(416, [*INERT, total, (b"content-length", b"0")])
                return 0
            end = min(first.size_bytes, first.offset + limit) if limit else first.size_bytes
            headers = [(b"content-length", b"%d" % (end - first.offset)), (b"accept-ranges", b"bytes")]
            if wanted:
                headers.append((b"content-range", b"bytes %d-%d/%d" % (first.offset, end - 1, first.size_bytes)))
            await request.start(206 if wanted else 200, [*attachment(name.rpartition("/")[2], ANY_TYPE), *headers])
            return end - first.offset

        await send_chunks(request, self._read_artifact, message, ReadArtifactResponse, start)

    async def _send_medium(self, request: HttpRequest, job_id: str, index: int) -> None:
        message = ReadSampleMediaRequest()
        fill(request.parameters, message, but=("job_id", "start_index", "max_media"))
        message.job_id, message.start_index, message.max_media = job_id, index, 1

        async def start(first: ReadSampleMediaResponse) -> int:
            if not first.HasField("index"):
                raise SamplesNotFoundError(f"the sample has no medium {index}")
            if first.problem:
                raise SamplesNotFoundError(f"medium {index} of the sample, {first.source}, can't be sent: {first.problem}")
            size = (b"content-length", b"%d" % first.size_bytes)
            kind = first.media_type.encode() if first.media_type.startswith("image/") else ANY_TYPE
            await request.start(200, [*attachment(medium_name(index, first.media_type), kind), size])
            return first.size_bytes

        await send_chunks(request, self._read_media, message, ReadSampleMediaResponse, start)

    async def _send_log(self, request: HttpRequest, job_id: str) -> None:
        message = ReadLogRequest()
        fill(request.parameters, message, but=("job_id",))
        message.job_id = job_id

        async def start(_: ReadLogResponse) -> None:
            await request.start(200, attachment(f"{job_id}.log", _LOG_TYPE))

        await send_chunks(request, self._read_log, message, ReadLogResponse, start)


async def send_chunks(
    request: HttpRequest,
    method: HttpMethod,
    message: Message,
    chunk_class: type[Any],
    start: Callable[[Any], Awaitable[int | None]],
) -> None:
    """Answer with the data in the messages of a stream. `start` begins the answer, with the first of them, and returns how many
    bytes it has announced, if any. Raises EvalrpcError where they do not come, so that the client sees an answer that is cut
    off."""
    announced_bytes: int | None = None
    sent_bytes = 0

    async def send(serialized: bytes) -> None:
        nonlocal announced_bytes, sent_bytes
        chunk = chunk_class.FromString(serialized)
        if not request.is_answered:
            announced_bytes = await start(chunk)
        if chunk.data:
            sent_bytes += len(chunk.data)
            await request.write(chunk.data)

    async def read() -> bytes:
        return message.SerializeToString()

    await method.call(request, read, send)
    if not request.is_answered:
        announced_bytes = await start(chunk_class())
    if announced_bytes not in (None, sent_bytes):
        raise UnavailableError("the file has become shorter while it was sent")
    await request.finish()


def attachment(name: str, kind: bytes) -> list[tuple[bytes, bytes]]:
    """Return headers with which browsers save a file under this name, and run nothing in it."""
    plain = f'filename="{name}"; ' if _PLAIN_NAME.fullmatch(name) else ""  # for curl -J, which knows no other
    disposition = f"attachment; {plain}filename*=UTF-8''{quote(name, safe='')}".encode()
    return [(b"content-type", kind), (b"content-disposition", disposition), *INERT]


def _range_of(header: str) -> tuple[int, int] | None:
    """Return the offset and the limit, 0 for none, that a header asks for; None for what is no range of these, which is passed
    over."""
    match = _RANGE.fullmatch(header)
    if match is None:
        return None
    first, last = int(match[1]), match[2]
    if last is None:
        return first, 0
    return (first, int(last) - first + 1) if first <= int(last) else None


def _name(raw: bytes) -> str:
    """Return the name of a file in a path. Raises InvalidRequestError."""
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise InvalidRequestError("the name of a file must be UTF-8, percent-encoded as ListArtifacts names it") from None
